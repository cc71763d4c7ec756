"""Ctrl-C and SIGTERM in this process: what is raised, and when."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayface.config import TrackingConfig
from rayface.interrupts import Terminated, interrupt_in, terminable
from rayface.tracking.job import tracked_job
from rayface.tracking.journal import read_records
from rayface.training.recovery.interrupt import exit_code_of

SIGNALS = [(signal.SIGTERM, Terminated, 143), (signal.SIGINT, KeyboardInterrupt, 130)]
pytestmark = pytest.mark.usefixtures("foreground")


@pytest.mark.parametrize(("number", "kind", "code"), SIGNALS)
def test_interrupt_in_an_import_waits_for_its_end(tmp_path, monkeypatch, number, kind, code):
    name = f"slow_module_{code}"
    text = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.3)\ndone = True\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def begin() -> None:
        __import__(name)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt) as raised, terminable():
        begin()
    assert type(raised.value) is kind
    assert exit_code_of(raised.value) == code
    assert sys.modules.pop(name).done


def test_interrupt_is_found_behind_the_error_that_it_caused():
    error = SystemError("a call returned a result with an exception set")
    error.__cause__ = Terminated()
    assert isinstance(interrupt_in(error), Terminated)
    error.__cause__ = RuntimeError("raised while it was handled")
    error.__cause__.__context__ = KeyboardInterrupt()
    assert interrupt_in(error) is error.__cause__.__context__
    assert interrupt_in(ValueError("no interrupt")) is None


def test_handlers_are_of_the_context_and_of_the_main_thread_and_leave_those_of_the_caller():
    before = [signal.getsignal(number) for number, *_ in SIGNALS]
    with terminable():
        assert all(signal.getsignal(number) not in before for number, *_ in SIGNALS)
    assert [signal.getsignal(number) for number, *_ in SIGNALS] == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[1])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(terminable().__enter__).result()
    assert [signal.getsignal(number) for number, *_ in SIGNALS] == before


@pytest.mark.parametrize(("number", "kind", "code"), SIGNALS)
def test_interrupted_job_is_killed_in_its_journal(tmp_path, number, kind, code):
    config = TrackingConfig(enabled=False)

    def interrupt() -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    with pytest.raises(kind), terminable(), tracked_job(tmp_path, config, {}):
        interrupt()
    (*_, (record, _)) = read_records(tmp_path / "journal" / "driver.jsonl", 0)
    assert record["status"] == "KILLED"
