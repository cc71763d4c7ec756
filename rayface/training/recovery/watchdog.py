"""Per-worker watchdog: detects a stalled run, reports the slowest rank and terminates its own process."""

import contextlib
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from rayface.training.run_directory import RunDirectory

# In the order of a step; evaluate and checkpoint belong to the step that follows.
PHASES = ("start", "evaluate", "score", "checkpoint", "data", "forward", "loss", "backward", "update", "finish")
# step, micro-batch, phase, heartbeats, Unix seconds; written at every change, so it survives a stopped process
_BEAT = struct.Struct("<qqqqd")
# Ray Data starts, and reads and decodes a whole window before the first batch.
_START_SECONDS = 1800.0
_EXIT_CODE = 70


class Watchdog:
    """Record the position of this worker, and terminate the process if training stalls.

    Workers wait for each other in every step, so all of them stall when one does. The slowest worker (earliest step,
    micro-batch or phase, fewest heartbeats in it, or last to arrive) is reported; as long as it makes progress, the
    others wait for it. Every worker that sees no progress exits immediately, so that Ray Train restarts all of them;
    the slowest one may be unable to.

    Args:
        run: the run directory.
        rank, size: rank of this worker, and number of workers.
        timeout: seconds without progress; 0 turns the watchdog off. The start, up to the first batch, has 30 minutes
            more. A waiting worker checks for progress every quarter of the timeout, so it may detect a hang that much
            later.
        progress: called while a checkpoint is being written: if its value changes, there is progress.
    """

    def __init__(self, run: RunDirectory, rank: int, size: int, timeout: float, progress: Callable[[], object]) -> None:
        self._run, self._rank, self._size, self._timeout, self._progress = run, rank, size, timeout, progress
        self._place, self._since = ("start", 0, 0), time.monotonic()
        self._signs = 0
        self._seen: object = None
        self._behind: Beat | None = None
        self._lock = threading.Lock()  # heartbeats come from two threads
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._since = time.monotonic()
        if self._timeout:
            if self._rank == 0:
                self._run.take_hang()  # left by earlier workers
            self._file = self._run.open_heartbeat(self._rank)
            self._write()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._file is not None:
            self._thread.join()
            os.close(self._file)
            self._file = None

    def at(self, phase: str, step: int, piece: int = 0) -> None:
        """Record the position of the worker."""
        with self._lock:
            self._place, self._signs = (phase, step, piece), 0
            self._since = time.monotonic()
            self._write()

    def alive(self) -> None:
        """Record progress within the phase."""
        with self._lock:
            self._signs += 1
            self._since = time.monotonic()
            self._write()

    def _watch(self) -> None:
        while not self._stop.wait(min(5.0, self._timeout / 5)):
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._run.share_heartbeat(self._rank, self._file)
            if still := self.standstill(time.monotonic()):
                self._report(still)
                os._exit(_EXIT_CODE)

    def standstill(self, now: float) -> float:
        """Return the seconds without progress at time `now` if they exceed the timeout, else 0."""
        phase = self._place[0]
        if phase == "checkpoint" and (seen := self._progress()) != self._seen:
            self._seen = seen
            self.alive()
            self._since = now
        limit = self._timeout + (_START_SECONDS if phase == "start" else 0)
        if now - self._since > limit / 4 and self._others_get_on():
            self._since = now
        still = now - self._since
        return still if still > limit else 0.0

    def _others_get_on(self) -> bool:
        """Return whether another worker is the slowest and has made progress since the last check."""
        behind = furthest_behind(self._run, self._size)
        if behind is None or behind.rank == self._rank or behind == self._behind:
            return False
        self._behind = behind
        return True

    def _write(self) -> None:
        if self._file is None:
            return
        phase, step, piece = self._place
        with contextlib.suppress(OSError):  # the watchdog also works on a full disk
            os.pwrite(self._file, _BEAT.pack(step, piece, PHASES.index(phase), self._signs, time.time()), 0)

    def _report(self, still: float) -> None:
        phase, step, piece = self._place
        behind = furthest_behind(self._run, self._size) or Beat(step, piece, phase, 0, 0.0, self._rank)
        where = f"step {behind.step}, {behind.phase}"
        where += f" of micro-batch {behind.piece + 1}" * (behind.piece > 0)
        line = f"worker {behind.rank} hangs: no progress for {still:.0f} s in {where} (train.hang_timeout)"
        print(line, file=sys.stderr, flush=True)
        self._run.record_hang(line)


class Beat(NamedTuple):
    """Position of a worker, its heartbeats there, and the Unix seconds of the last one."""

    step: int
    piece: int
    phase: str
    signs: int
    since: float
    rank: int


def has_stepped(run: RunDirectory) -> bool:
    """Return whether worker 0 has been in a step of training since the driver started, as far as heartbeats tell."""
    beat = furthest_behind(run, 1)
    return beat is not None and beat.phase not in ("start", "evaluate", "score")


def furthest_behind(run: RunDirectory, size: int) -> Beat | None:
    """Return the slowest worker; None if none is known."""
    beats = []
    for rank in range(size):
        with contextlib.suppress(OSError, struct.error, IndexError):
            step, piece, phase, signs, since = _BEAT.unpack(run.read_heartbeat(rank))
            beats.append(Beat(step, piece, PHASES[phase], signs, since, rank))

    def key(beat: Beat) -> tuple[float, ...]:
        # Among workers at the same position, the last to arrive is the slowest: the others wait for it.
        return beat.step, beat.piece, PHASES.index(beat.phase), beat.signs, -beat.since

    return min(beats, key=key, default=None)
