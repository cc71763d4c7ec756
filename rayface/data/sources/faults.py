"""Log of what a conversion skips: named up to a limit, counted beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rayface.data.shards.samples import Fault

_NAMED = 1000  # of each kind
_NAMED_ONCE = ("hidden", "other file", "special file")  # obviously not images: one example is enough

_NO_LOSS = (*_NAMED_ONCE, "alias", "outside", "identity")


class FaultLog:
    """Faults of a source in bounded memory: the first of each kind by name, all others as numbers."""

    def __init__(self, root: str, faults: Iterable[Fault] = ()):
        self.root = root
        self._named: list[Fault] = []
        self._num_named: Counter[str] = Counter()
        self._num_unnamed: Counter[str] = Counter()
        self._num_lost: Counter[str] = Counter()  # images lost by the unnamed ones
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        limit = 1 if fault.kind in _NAMED_ONCE else _NAMED
        if self._num_named[fault.kind] < limit:
            self._num_named[fault.kind] += 1
            self._named.append(fault)
        else:
            self._num_unnamed[fault.kind] += 1
            self._num_lost[fault.kind] += fault.num_lost

    def update(self, other: FaultLog) -> None:
        """Add the faults of another log of the same source."""
        self.load(other.state())

    def state(self) -> dict[str, object]:
        """Return what was logged, as JSON types."""
        counts = {kind: [more, self._num_lost[kind]] for kind, more in self._num_unnamed.items()}
        return {"named": [asdict(fault) for fault in self._named], "unnamed": counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Add what `state` returned for another log."""
        for fault in state["named"]:
            self.add(Fault(**fault))
        for kind, (more, lost) in state["unnamed"].items():
            self._num_unnamed[kind] += more
            self._num_lost[kind] += lost

    @property
    def num_lost(self) -> int:
        """Number of images that are lost, without what is no image."""
        named = sum(fault.num_lost for fault in self._named if fault.kind not in _NO_LOSS)
        return named + sum(lost for kind, lost in self._num_lost.items() if kind not in _NO_LOSS)

    def first(self) -> Fault | None:
        """Return the first fault, of lost images if there are any."""
        lost = (fault for fault in self._named if fault.num_lost and fault.kind not in _NO_LOSS)
        return next(lost, self._named[0] if self._named else None)

    def faults(self) -> list[Fault]:
        """Return the named faults, then one for the rest of each kind; `num_lost` is the number of things lost."""
        return self._named + [
            Fault(
                shard=self.root,
                member=None,
                reason=f"{more} more of kind '{kind}'",
                num_lost=self._num_lost[kind],
                kind=kind,
            )
            for kind, more in self._num_unnamed.items()
            if more
        ]
