"""The parts of the kit, most valuable first. Weights are seconds of eight minutes."""

from rayface.bench.gpu.case import Part

_ROOM = "rayface.bench.gpu"

PARTS = (
    Part(key="a", title="parity with the CPU", module=f"{_ROOM}.parity", weight=110),
    Part(key="b", title="head step", module=f"{_ROOM}.head_step", weight=95),
    Part(key="c", title="images/s of training steps", module=f"{_ROOM}.train_speed", weight=165),
    Part(key="d", title="decoding and augmentation", module=f"{_ROOM}.decoding", weight=20),
    Part(key="e", title="Face-NMS and all pairs", module=f"{_ROOM}.curation", weight=35),
    Part(key="f", title="memory against the plan", module=f"{_ROOM}.plan_memory", weight=55),
)
