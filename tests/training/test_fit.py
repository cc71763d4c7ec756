"""Workers that end, drain or fail, with functions in place of Ray Train's."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from rayface import config as configs
from rayface.training import fit as fits
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.run_directory import RunDirectory
from rayface.training.timeouts import collective_seconds

Session = Callable[[RunDirectory], None]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDirectory]:
    """Fits a run whose worker groups are the given functions, one after another."""
    monkeypatch.setattr(fits, "share", lambda dataset, grouped, cache_size: None)
    run = RunDirectory(tmp_path)

    def fit(*sessions: Session) -> RunDirectory:
        left = list(sessions)
        monkeypatch.setattr(fits, "_trainer", lambda *args: SimpleNamespace(fit=lambda: left.pop(0)(run)))
        order = SimpleNamespace(needs_groups=False)
        valid = SimpleNamespace(config=configs.load("debug"), dataset=None, sample_order=order)
        fits.fit(run, valid, held_cpus=0.0)
        assert not left, "a worker group was not started"
        return run

    return fit


def finish(run: RunDirectory) -> None:
    run.write_outcome({"steps": 3})


def drain(run: RunDirectory) -> None:
    run.request_drain()


def test_fit_of_workers_that_finish_starts_them_once(fit: Callable[..., RunDirectory]) -> None:
    run = fit(finish)
    assert run.has_outcome()


def test_fit_of_workers_that_drain_starts_others_until_they_finish(fit: Callable[..., RunDirectory]) -> None:
    run = fit(drain, drain, finish)
    assert not run.drain_requested()


def test_fit_of_workers_that_drain_after_the_last_step_starts_no_others(fit: Callable[..., RunDirectory]) -> None:
    assert fit(lambda run: (finish(run), drain(run))).has_outcome()


def test_fit_forgets_the_restarts_of_an_earlier_driver(tmp_path: Path, fit: Callable[..., RunDirectory]) -> None:
    RunDirectory(tmp_path).add_restart("worker 1 died")
    assert fit(finish).restarts() == []


def test_fit_forgets_the_heartbeats_of_an_earlier_drivers_workers(
    tmp_path: Path, fit: Callable[..., RunDirectory]
) -> None:
    (tmp_path / "beats").mkdir()
    (tmp_path / "beats" / "rank_00000").touch()
    fit(finish)
    assert not (tmp_path / "beats").exists()


def test_fit_of_workers_that_were_asked_to_stop_raises_how_to_resume(
    tmp_path: Path, fit: Callable[..., RunDirectory]
) -> None:
    """By a sweep; a drain request beside it starts no others."""

    def stop(run: RunDirectory) -> None:
        run.request_drain()
        run.request_stop()

    with pytest.raises(TrainingInterruptedError, match=r"^interrupted; no checkpoint was saved yet; ") as caught:
        fit(stop)
    assert caught.value.exit_code == 130
    assert str(caught.value).endswith(f"rayface train --resume train.output={tmp_path}")


def test_fit_that_was_interrupted_after_a_checkpoint_names_it(tmp_path: Path, fit: Callable[..., RunDirectory]) -> None:
    saved = tmp_path / "checkpoints" / "step_00000007"
    saved.mkdir(parents=True)
    (saved / "progress.json").write_text("{}")
    with pytest.raises(TrainingInterruptedError, match=rf"the last checkpoint is {saved};"):
        fit(lambda run: None)


def test_fit_of_workers_that_fail_raises_the_cause_in_one_line(fit: Callable[..., RunDirectory]) -> None:
    def fail(run: RunDirectory) -> None:
        raise WorkerGroupError("many\nlines", {1: UserExceptionWithTraceback(ValueError("head.scale: 0"), "trace")})

    with pytest.raises(ValueError, match=r"^head\.scale: 0$"):
        fit(fail)


@pytest.mark.parametrize(("timeout", "seconds"), [(0, 1800), (600, 2 * 600 + 86_400), (0.2, 86_401)])
def test_timeout_of_collectives_with_a_watchdog_is_longer_than_any_wait(timeout: float, seconds: int) -> None:
    assert collective_seconds(timeout) == seconds
