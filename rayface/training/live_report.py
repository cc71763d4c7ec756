"""The report of a run while it trains: written again after validations and checkpoints, by a thread of the driver."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rayface.pools import background_thread
from rayface.tracking.journal import JournalTail
from rayface.training.run_directory import RunDirectory
from rayface.training.run_view import MAX_POINTS, RunWatcher, Thinned

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30
"""Least time between two reports, and the time after which an open page loads the next one."""
_POLL_SECONDS = 3.0
_NEWS = ("eval/", "checkpoint/")


@contextmanager
def reported(run: RunDirectory) -> Iterator[None]:
    """Keep the report up to date inside the context, and without reloading after it; short runs get none."""
    with background_thread(partial(_follow, run), "report", wait=60):
        yield


def _follow(run: RunDirectory, done: threading.Event) -> None:
    metrics, watcher = _Metrics(run), RunWatcher(run=run)
    last, news, written = time.monotonic(), False, False
    while not done.wait(_POLL_SECONDS):
        news = metrics.read() or news
        if news and time.monotonic() - last >= REPORT_SECONDS:
            _write(run, watcher, metrics, refresh=REPORT_SECONDS)
            last, news, written = time.monotonic(), False, True
    if written:
        metrics.read()
        _write(run, watcher, metrics, refresh=0)


class _Metrics:
    """Metrics of a run so far, as points (step, value, unix seconds), thinned.

    A report takes the same time and memory however long the run is: 65,000 records took 2 s and 110 MB to read again.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._tail = JournalTail(run.journals)
        self._points: defaultdict[str, Thinned[tuple[int, float, float]]] = defaultdict(lambda: Thinned(MAX_POINTS))

    def read(self) -> bool:
        """Read what is new, and return whether a validation or a checkpoint is in it."""
        news = False
        for record in self._tail.read():
            if record["kind"] == "metrics":
                for name, value in record["values"].items():
                    self._points[name].append((record["step"], float(value), record["time"]))
                    news = news or name.startswith(_NEWS)
        return news

    def points(self) -> dict[str, list[tuple[int, float, float]]]:
        """Return the points of every name, sorted by step, as `read_metrics` does."""
        return {name: sorted(thinned.values()) for name, thinned in self._points.items()}


def _write(run: RunDirectory, watcher: RunWatcher, metrics: _Metrics, refresh: int) -> None:
    from rayface.training.report import write_report  # matplotlib: not at the start of a run

    try:
        table = [(name, value) for name, value in watcher.read().rows().items()]
        write_report(run, metrics=metrics.points(), table=table, evaluation=run.read_evaluation(), refresh=refresh)
    except Exception:  # a fault of the report must not end a run
        logger.debug("the report of the run could not be written", exc_info=True)
