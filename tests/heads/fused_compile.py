"""Compile the fused kernels for a GPU on a machine without one: fused_compile OUT CAPABILITY SHARED_MEMORY.

A driver that launches nothing stands in for CUDA's, so that the head's own calls are compiled. OUT gets, by kernel, the
shared memory and the stack of a thread (bytes), and the number of tensor-core products.
"""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from rayface.heads import CosFace
from rayface.heads.class_centers import CenterOptimizer, ClassCenters
from rayface.heads.fused_softmax import FusedSoftmax, Multiprocessor
from rayface.heads.sharded_softmax import PendingGradient

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Driver:
    """The part of a Triton driver that compilation asks."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Return registers, stack and so on of a kernel, from its machine code."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    said = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True, timeout=60)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said.stdout + said.stderr)}


def step(
    width: int,
    dtype: torch.dtype,
    margin: CosFace,
    *,
    product_dtype: torch.dtype = torch.bfloat16,
    want_maximum_with: bool,
) -> None:
    """Make the calls of a step with SGD and sampled rows: sums, gradient, update; sums with a maximum too.

    Then those of all rows without momentum that are other kernels.
    """
    count, batch = 40, 20
    optimizer = CenterOptimizer()
    sizes = {"device": torch.device("cpu"), "host_memory": False, "seed": 0, "fused": True}
    centers = ClassCenters(count, width, optimizer=optimizer, dtype=dtype, **sizes)
    softmax = FusedSoftmax(centers, margin, product_dtype=product_dtype, logit_memory=1)
    unit, rows = torch.zeros(batch, width), torch.arange(0, count, 2)
    pending = PendingGradient(
        unit=unit,
        scaled=unit.to(product_dtype),
        rows=rows,
        num_rows=len(rows),
        positions=torch.arange(3),
        samples=torch.arange(3),
        step=0,
        base=0.0,
        weight=torch.ones(batch),
        target_weight=torch.ones(3),
        factor=torch.ones(()),
    )
    softmax.accumulate(pending, True)
    softmax.accumulate(replace(pending, base=None), want_maximum_with)
    gradient = torch.empty(len(rows), width)
    softmax.center_gradient(pending, softmax.gradient_factors(pending), 0, len(rows), gradient)
    centers.update(rows, gradient, 0.1)
    # rows that lie together, as of a head without sampling, and no momentum
    plain = ClassCenters(count, width, optimizer=replace(optimizer, momentum=0.0), dtype=dtype, **sizes)
    plain.read_units(slice(0, len(rows)), torch.empty(len(rows), width, dtype=product_dtype))
    plain.update(slice(0, len(rows)), gradient, 0.1)


def main(out: Path, capability: int, shared_memory: int) -> None:
    """Write the resources of each kernel."""
    found: dict[str, Any] = {}
    compiled = JITFunction.run

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = compiled(function, *args, grid=grid, warmup=True, **options)
        sizes = resources(kernel.asm["cubin"], out.parent)
        products = len(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", kernel.asm["ptx"]))
        found[f"{function.__name__} {len(found)}"] = {"shared": kernel.metadata.shared, "products": products, **sizes}

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Driver(capability))
    limits = Multiprocessor(shared_memory, tensor_memory=capability in (100, 103, 110))
    Multiprocessor.of = classmethod(lambda cls, device: limits)  # type: ignore[method-assign,assignment]
    step(512, torch.float32, CosFace(), want_maximum_with=True)
    step(512, torch.bfloat16, CosFace(conflict_threshold=0.4), want_maximum_with=False)
    step(256, torch.float32, CosFace(), want_maximum_with=True)
    step(512, torch.float32, CosFace(), product_dtype=torch.float32, want_maximum_with=False)
    torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
