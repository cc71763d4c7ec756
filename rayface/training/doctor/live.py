"""Diagnosis while a run trains: a thread of the driver that reads the journal and logs at most one line of advice."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rayface.pools import background_thread
from rayface.tracking.journal import Journal, JournalTail
from rayface.training.doctor.history import FIRST_STEPS, RunHistory
from rayface.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

ADVICE = "doctor.advice"
"""Tag of the run with the line of advice."""
_POLL_SECONDS = 3.0


@contextmanager
def advised(run: RunDirectory, start: RunHistory, journal: Journal) -> Iterator[None]:
    """Diagnose the run inside the context after its first steps, and again when it must have learnt.

    Args:
        start: the run before its first step.
        journal: of the driver; gets the advice as the tag ADVICE.
    """
    with background_thread(_Doctor(run, start, journal).watch, "doctor", wait=30):
        yield


class _Doctor:
    def __init__(self, run: RunDirectory, start: RunHistory, journal: Journal) -> None:
        self._tail, self._start, self._journal = JournalTail(run.journals), start, journal
        self._step = 0
        self._metrics: dict[str, list[tuple[int, float]]] = {}

    def watch(self, done: threading.Event) -> None:
        """Look at the run until there is advice, it has been judged, or it is done."""
        looks = [FIRST_STEPS, self._start.judged_step]
        try:
            while looks:
                ended = done.wait(_POLL_SECONDS)
                self._read()
                if self._step >= looks[0] or (ended and self._step):
                    looks = [step for step in looks if step > self._step]
                    if self._advises():
                        return
                if ended:
                    return
        except Exception:  # a fault of the diagnosis must not end a run
            logger.debug("the diagnosis of the run failed", exc_info=True)

    def _read(self) -> None:
        """Read new records of the steps up to the one at which the run is judged."""
        for record in self._tail.read():
            if record["kind"] == "metrics" and self._step < self._start.judged_step:
                self._step = max(self._step, record["step"])
                for name, value in record["values"].items():
                    self._metrics.setdefault(name, []).append((record["step"], float(value)))

    def _advises(self) -> bool:
        """Log and record the advice, if there is any; return whether there is."""
        from rayface.training.doctor.diagnosis import diagnose  # PyTorch: not on the way to the first step

        advice = diagnose(replace(self._start, metrics=self._metrics)).advice
        if advice is not None:
            logger.warning("doctor: %s", advice)
            self._journal.tags({ADVICE: advice})
        return advice is not None
