"""The parts of the kit, most valuable first."""

from rayface.bench.gpu.case import Part

_ROOM = "rayface.bench.gpu"

PARTS = (
    Part(key="a", title="parity with the CPU", module=f"{_ROOM}.parity", weight=110),
    Part(key="b", title="head step", module=f"{_ROOM}.head_step", weight=90),
)
