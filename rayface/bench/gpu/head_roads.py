"""The implementations of a head's step that the kit measures: one line adds another."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rayface.bench.yardsticks import PlainHead
from rayface.heads import PartialFC
from rayface.heads.base import Head, HeadSettings

RATES = (0.1, 0.2, 1.0)


@dataclass(frozen=True, kw_only=True)
class HeadRoad:
    """A head's class, and the settings in which it differs from the others."""

    name: str
    head: type[Head] = PartialFC
    changes: Mapping[str, object] = field(default_factory=dict)
    rates: tuple[float, ...] = RATES
    seconds: float = 8.0
    only_cuda: bool = False

    def build(self, settings: HeadSettings) -> Head:
        """Return the head for common settings."""
        return self.head.build(replace(settings, **self.changes))  # type: ignore[arg-type]


ROADS = (
    HeadRoad(name="partial_fc"),
    HeadRoad(name="partial_fc, fused", changes={"kernel": "fused"}, seconds=15, only_cuda=True),
    HeadRoad(name="straightforward", head=PlainHead, seconds=10),
    HeadRoad(name="partial_fc, logits kept", changes={"logit_memory": 6_000_000_000}, rates=(0.2, 1.0)),
    HeadRoad(name="partial_fc, bf16 storage", changes={"storage_dtype": "bf16"}, rates=(0.1, 1.0)),
    HeadRoad(
        name="partial_fc, fused, bf16 storage",
        changes={"kernel": "fused", "storage_dtype": "bf16"},
        rates=(0.1, 1.0),
        only_cuda=True,
    ),
    HeadRoad(name="partial_fc, dense update", changes={"center_update": "dense"}, rates=(0.1,)),
    HeadRoad(name="partial_fc, adamw", changes={"optimizer": "adamw"}, rates=(0.1,)),
    HeadRoad(name="partial_fc, host memory", changes={"host_memory": True}, rates=(0.1,), seconds=25),
)
