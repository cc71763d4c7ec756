"""The kit's time, shared out over its parts; what a part leaves goes to those after it."""

import time
from collections.abc import Callable, Sequence

from rayface.bench.gpu.case import Part


class Budget:
    """Deadlines on the clock of `time.monotonic`, which all processes of a machine share.

    Args:
        seconds: of the whole kit, from now on.
        parts: in the order in which they run.
    """

    def __init__(self, seconds: float, parts: Sequence[Part], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._parts = clock, list(parts)
        self.end = clock() + seconds

    def deadline(self, part: Part) -> float:
        """Return when a part that begins now must end."""
        left = self._parts[self._parts.index(part) :]
        share = part.weight / sum(each.weight for each in left)
        now = self._clock()
        return now + max(0.0, self.end - now) * share
