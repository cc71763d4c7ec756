"""When workers look whether they are asked to stop or to drain: together, and often enough for slow steps."""

import time

from rayface.config import TrainConfig
from rayface.training.distributed import World, broadcast_int
from rayface.training.run_directory import RunDirectory

_LOOKS = 4  # within the grace time


class StopRequests:
    """Looks for requests after the first step, then every log_every steps, or more often where steps are slow.

    Rank 0 decides for all ranks, and in how many steps they look again; one broadcast of a number each time.

    Args:
        train: log_every; grace_seconds: time in which workers must have seen a request and saved a checkpoint.
    """

    def __init__(self, run: RunDirectory, world: World, train: TrainConfig) -> None:
        self._run, self._world, self._train = run, world, train
        self._steps, self._left, self._since = 1, 1, time.monotonic()

    def asked(self) -> bool:
        """Return whether a stop or drain is requested; every rank must call it after every step."""
        self._left -= 1
        if self._left:
            return False
        found = self._world.rank == 0 and (self._run.stop_requested() or self._run.drain_requested())
        now = time.monotonic()
        usable = self._train.grace_seconds / _LOOKS * self._steps / max(now - self._since, 1e-9)  # steps
        self._steps = self._left = broadcast_int(0 if found else self._pause(usable), self._world)
        self._since = now
        return not self._steps

    def _pause(self, steps: float) -> int:
        return max(1, min(self._train.log_every, int(steps)))

    def clear(self) -> None:
        """Clear a requested stop, after its checkpoint; a drain is the controller's to clear."""
        if self._world.rank == 0 and self._run.stop_requested():
            self._run.clear_drain_request()  # a requested stop must not restart the workers
            self._run.clear_stop_request()
