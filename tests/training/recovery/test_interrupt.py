"""Ctrl-C while a run is at work: a stop is requested, and its workers have a grace time."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayface.interrupts import Terminated
from rayface.training.recovery import interrupt
from rayface.training.recovery.interrupt import TrainingInterruptedError, exit_code_of, run_interruptibly
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("foreground")


def test_exit_code_of_interrupts_tells_them_apart() -> None:
    assert [exit_code_of(error) for error in (KeyboardInterrupt(), Terminated())] == [130, 143]
    error = TrainingInterruptedError("interrupted", Terminated())
    assert (exit_code_of(error), str(error)) == (143, "interrupted")


def test_run_that_ends_by_itself_clears_an_old_request_to_stop(tmp_path: Path) -> None:
    run, seen = RunDirectory(tmp_path), []
    run.request_stop()
    run_interruptibly(lambda: seen.append(run.stop_requested()), run, 1.0)
    assert seen == [False]


def test_run_that_fails_raises_its_error(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("head.scale: 0")

    with pytest.raises(ValueError, match=r"^head\.scale: 0$"):
        run_interruptibly(fail, RunDirectory(tmp_path), 1.0)


def test_run_that_another_driver_took_over_stops_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(RunDirectory, "is_lost", lambda run: True)
    with pytest.raises(TrainingStoppedError, match=rf"^train.output: {tmp_path}: another driver took it over while "):
        run_interruptibly(end.wait, RunDirectory(tmp_path), 1.0)
    end.set()


WAITING = threading.Event()  # the main thread has begun to wait for the work


class WaitedFor(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        WAITING.set()
        return super().wait(timeout)


@pytest.fixture(autouse=True)
def waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    WAITING.clear()
    monkeypatch.setattr(interrupt, "threading", SimpleNamespace(Event=WaitedFor, Thread=threading.Thread))


def interrupted_work(run: RunDirectory, then: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Work that is interrupted, waits for the request to stop, and ends."""

    def work() -> None:
        assert WAITING.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        waiting = threading.Event()
        for _ in range(3000):
            if run.stop_requested():
                break
            waiting.wait(0.01)
        assert run.stop_requested()
        then()

    return work


@pytest.mark.parametrize("fails", [False, True])
def test_run_that_is_interrupted_is_asked_to_stop_and_raises(tmp_path: Path, fails: bool) -> None:
    run = RunDirectory(tmp_path)

    def fail() -> None:
        run.write_outcome({"steps": 3})
        raise ValueError("after its outcome")

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(interrupted_work(run, fail if fails else lambda: None), run, 30.0)
    assert not run.stop_requested()


def test_run_that_has_stepped_has_its_grace_time_while_its_workers_start_again(tmp_path: Path) -> None:
    run, looked = RunDirectory(tmp_path), threading.Event()

    def has_stepped() -> bool:
        first = not looked.is_set()
        looked.set()
        return first

    def work() -> None:
        assert looked.wait(30)
        WAITING.clear()  # the next wait begins after the look
        interrupted_work(run, lambda: run.write_outcome({"steps": 3}))()

    run_interruptibly(work, run, 30.0, has_stepped)
    assert run.has_outcome()


def test_run_that_finishes_in_spite_of_an_interrupt_does_not_raise(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run_interruptibly(interrupted_work(run, lambda: run.write_outcome({"steps": 3})), run, 30.0)
    assert run.has_outcome()


def test_run_that_does_not_end_in_its_grace_time_is_left(tmp_path: Path) -> None:
    run, end = RunDirectory(tmp_path), threading.Event()
    run.write_outcome({"steps": 3})
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(interrupted_work(run, end.wait), run, 0.05)
    end.set()


def test_run_that_is_interrupted_before_its_first_step_is_left_at_once(tmp_path: Path) -> None:
    """There is nothing to save, and its workers would need half a minute to notice."""
    run, end = RunDirectory(tmp_path), threading.Event()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(interrupted_work(run, end.wait), run, 3600.0, lambda: False)
    end.set()
