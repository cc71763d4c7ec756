"""Part a: the same computation on the CPU and on the GPU.

Both are held to float64 on the CPU. The GPU passes if its error is of the size of the CPU's own in the same types.
"""

from collections.abc import Iterator

from rayface.bench.gpu import parity_backbones, parity_heads, parity_steps
from rayface.bench.gpu.case import Case, Kit


def cases(kit: Kit) -> Iterator[Case]:
    """Yield the cases: heads, backbones, training steps."""
    for module in (parity_heads, parity_steps, parity_backbones):
        yield from module.cases(kit)
