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

# In the order in which a step goes through them; evaluate and checkpoint belong to the step that follows.
PHASES = ("start", "evaluate", "score", "checkpoint", "data", "forward", "loss", "backward", "update", "finish")
# step, piece, phase, signs of life, unix seconds; written at every change, so that a stopped process left it
_BEAT = struct.Struct("<qqqqd")
# Before the first batch Ray Data starts, reads and decodes a whole window.
_START_SECONDS = 1800.0
_EXIT_CODE = 70


class Watchdog:
    """Holds where this worker is, writes it to RUN/beats, and ends the process when it stays there too long.

    Workers wait for each other in every step, so all stand still when one does. The one that is behind the others
    (an earlier step, piece of its batch or phase, fewer signs of life in it, or the last to come there) is the one that
    is named, in RUN/hang; as long as it gets on, the others wait for it. Every worker that sees no progress exits hard,
    so that Ray Train starts them again; the named one may not be able to.

    Args:
        run: the run directory.
        rank, size: of this worker, and how many there are.
        timeout: seconds without progress; 0: nothing is watched. The start, up to the first batch, gets 30 min. more.
            A worker that waits looks after a quarter of it who gets on, so it may see a hang a quarter later.
        progress: asked while a checkpoint is waited for: as long as the answer changes, something is done.
    """

    def __init__(self, run: RunDirectory, rank: int, size: int, timeout: float, progress: Callable[[], object]) -> None:
        self._run, self._rank, self._size, self._timeout, self._progress = run, rank, size, timeout, progress
        self._place, self._since = ("start", 0, 0), time.monotonic()
        self._signs = 0
        self._seen: object = None
        self._behind: Beat | None = None
        self._lock = threading.Lock()  # signs of life come from two threads
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._since = time.monotonic()
        if self._timeout:
            if self._rank == 0:
                self._run.take_hang()  # of the workers before
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
        """Say where the worker is now."""
        with self._lock:
            self._place, self._signs = (phase, step, piece), 0
            self._since = time.monotonic()
            self._write()

    def alive(self) -> None:
        """Say that there is progress in the phase."""
        with self._lock:
            self._signs += 1
            self._since = time.monotonic()
            self._write()

    def _watch(self) -> None:
        while not self._stop.wait(min(5.0, self._timeout / 5)):
            if self._file is not None:
                with contextlib.suppress(OSError):
                    os.fsync(self._file)  # for readers on other machines
            if still := self.standstill(time.monotonic()):
                self._report(still)
                os._exit(_EXIT_CODE)

    def standstill(self, now: float) -> float:
        """Seconds without progress at the time `now`, 0 as long as they are not too many."""
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
        """Whether the worker that the others wait for is another one, and not where it was at the last look."""
        behind = furthest_behind(self._run, self._size)
        if behind is None or behind.rank == self._rank or behind == self._behind:
            return False
        self._behind = behind
        return True

    def _write(self) -> None:
        if self._file is None:
            return
        phase, step, piece = self._place
        with contextlib.suppress(OSError):  # a full disk is no reason to watch less
            os.pwrite(self._file, _BEAT.pack(step, piece, PHASES.index(phase), self._signs, time.time()), 0)

    def _report(self, still: float) -> None:
        phase, step, piece = self._place
        behind = furthest_behind(self._run, self._size) or Beat(step, piece, phase, 0, 0.0, self._rank)
        where = f"step {behind.step}, {behind.phase}"
        where += f" of piece {behind.piece + 1}" * (behind.piece > 0)
        line = f"worker {behind.rank} hangs: no progress for {still:.0f} s in {where} (train.hang_timeout)"
        print(line, file=sys.stderr, flush=True)
        self._run.record_hang(line)


class Beat(NamedTuple):
    """Where a worker is, how often it has said there that it gets on, and the unix seconds when it last did."""

    step: int
    piece: int
    phase: str
    signs: int
    since: float
    rank: int


def furthest_behind(run: RunDirectory, size: int) -> Beat | None:
    """The worker that the others wait for; None where none is known."""
    beats = []
    for rank in range(size):
        with contextlib.suppress(OSError, struct.error, IndexError):
            step, piece, phase, signs, since = _BEAT.unpack(run.read_heartbeat(rank))
            beats.append(Beat(step, piece, PHASES[phase], signs, since, rank))

    def key(beat: Beat) -> tuple[float, ...]:
        # Of those at the same place, the last to come: the others were there before, waiting.
        return beat.step, beat.piece, PHASES.index(beat.phase), beat.signs, -beat.since

    return min(beats, key=key, default=None)
