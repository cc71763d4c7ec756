"""The report of a run while it trains: written again after validations and checkpoints, by a thread of the driver."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rayface.tracking.journal import JournalTail
from rayface.training.run_directory import RunDirectory
from rayface.training.run_view import RunWatcher

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30
"""Least time between two reports, and the time after which an open page loads the next one."""
_POLL_SECONDS = 3.0
_NEWS = ("eval/", "checkpoint/")


@contextmanager
def reported(run: RunDirectory) -> Iterator[None]:
    """Keep the report up to date inside the context, and without reloading after it; short runs get none."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, done), daemon=True, name="report")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=60)


def _follow(run: RunDirectory, done: threading.Event) -> None:
    tail, watcher = JournalTail(run.journals), RunWatcher(run=run)
    last, news, written = time.monotonic(), False, False
    while not done.wait(_POLL_SECONDS):
        names = [name for record in tail.read() if record["kind"] == "metrics" for name in record["values"]]
        news = news or any(name.startswith(_NEWS) for name in names)
        if news and time.monotonic() - last >= REPORT_SECONDS:
            _write(run, watcher, refresh=REPORT_SECONDS)
            last, news, written = time.monotonic(), False, True
    if written:
        _write(run, watcher, refresh=0)


def _write(run: RunDirectory, watcher: RunWatcher, refresh: int) -> None:
    from rayface.training.report import write_report  # matplotlib: not at the start of a run

    try:
        table = [(name, value) for name, value in watcher.read().rows().items()]
        write_report(run, metrics=run.read_metrics(), table=table, evaluation=run.last_evaluation(), refresh=refresh)
    except Exception:  # a fault of the report must not end a run
        logger.debug("the report of the run could not be written", exc_info=True)
