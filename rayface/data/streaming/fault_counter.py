"""Limit on the number of corrupt images of a run or a job."""

from collections.abc import Sequence
from typing import Any

from rayface.data.shards.samples import Fault
from rayface.storage import DataError


class FaultCounter:
    """Counts distinct corrupt images; too many of them stop the run.

    Every rank sees the same faults at the same step, so all ranks stop together without a collective.
    """

    def __init__(self, num_samples: int, max_corrupt_fraction: float, known: Sequence[Fault] = ()) -> None:
        self._lost = {(f.shard, f.member, f.offset): f.num_lost for f in known}
        self._num_samples = num_samples + sum(self._lost.values())
        self._limit = max_corrupt_fraction

    @property
    def num_lost(self) -> int:
        """Number of corrupt images so far, including those known from the start."""
        return sum(self._lost.values())

    def state(self) -> list[list[str | int | None]]:
        """Return what was counted, as JSON."""
        return [[*key, lost] for key, lost in self._lost.items()]

    def load_state(self, state: list[list[Any]]) -> None:
        """Add what `state` returned in an earlier part of the run."""
        self._lost.update({(shard, member, offset): lost for shard, member, offset, lost in state})

    def add(self, faults: Sequence[Fault]) -> list[Fault]:
        """Count faults and return those that are new.

        Raises:
            DataError: above the limit.
        """
        new = [f for f in faults if (f.shard, f.member, f.offset) not in self._lost]
        self._lost.update({(f.shard, f.member, f.offset): f.num_lost for f in new})
        if new and self.num_lost > self._limit * self._num_samples:
            raise DataError(
                f"{self.num_lost} of {self._num_samples} images are corrupt, more than "
                f"data.max_corrupt_fraction={self._limit:g} allows; the last is {new[-1]}; "
                "see `rayface check --deep` for all"
            )
        return new
