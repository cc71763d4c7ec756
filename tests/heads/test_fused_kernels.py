"""The Triton kernels of the margin softmax: against float64 in the interpreter, and compiled for GPUs."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from rayface.heads.fused_kernels import SoftmaxTile, center_gradient, softmax_sums
from rayface.heads.fused_softmax import Multiprocessor, check_fused_storage

BATCH, ROWS, WIDTH, FIRST, SCALE = 19, 53, 21, 100, 30.0
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled unit embeddings, unit rows, and places of the targets: some in the chunk, some before it, some nowhere."""
    generator = torch.Generator().manual_seed(0)
    embeddings, centers = (torch.randn(n, WIDTH, generator=generator) for n in (BATCH, ROWS))
    places = torch.full((BATCH,), -1, dtype=torch.int32)
    places[:5] = torch.tensor([FIRST, FIRST + 52, FIRST + 7, FIRST + 7, 3])
    scaled = torch.nn.functional.normalize(embeddings) * SCALE
    return scaled.to(dtype), torch.nn.functional.normalize(centers).to(dtype), places


def tile(conflict: float | None = None, fixed: bool = True) -> SoftmaxTile:
    """Tiles that neither the batch nor the rows fill."""
    sizes = {"width": WIDTH, "padded": 32, "samples": 16, "classes": 16}
    return SoftmaxTile(**sizes, conflict=conflict, fixed=fixed, emulated=True)


def wanted_logits(scaled: Tensor, units: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits in float64 without the targets, (BATCH, ROWS), and where the targets are."""
    logits = scaled.double() @ units.double().T
    target = places[:, None] == FIRST + torch.arange(ROWS)[None, :]
    return logits.masked_fill(target, -torch.inf), target


def assert_close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Compare relative to the largest value."""
    assert (found.double() - wanted).abs().max() < BOUNDS[dtype] * wanted.abs().max()


@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("fixed", [True, False], ids=["base", "maximum"])
@pytest.mark.parametrize("conflict", [None, 5.0])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_softmax_sums_of_a_ragged_chunk_equal_float64(
    dtype: torch.dtype, conflict: float | None, fixed: bool, strips: int
) -> None:
    """Added to what earlier chunks left, without the targets, conflicts counted as 0 without a center."""
    scaled, units, places = operands(dtype)
    tops = torch.full((strips, BATCH), 2.0 if fixed else torch.finfo(torch.float32).min)
    sums, weighted = torch.zeros(strips, BATCH), torch.zeros(strips, BATCH, WIDTH)
    if fixed:
        sums[0], weighted[0] = 7.0, 0.5
    sizes = (BATCH, ROWS, FIRST, -(-4 // strips))
    softmax_sums[2, strips](scaled, units, places, tops, sums, weighted, *sizes, tile(conflict, fixed))
    logits, _ = wanted_logits(scaled, units, places)
    conflicts = torch.zeros_like(logits, dtype=torch.bool) if conflict is None else logits > conflict
    logits = logits.masked_fill(conflicts, 0)
    top = torch.full((BATCH,), 2.0) if fixed else tops.amax(0)
    exponentials = torch.exp(logits - top.double()[:, None])
    rescale = torch.exp(tops - top)
    assert_close((sums * rescale).sum(0), exponentials.sum(1) + 7.0 * fixed, dtype)
    of_centers = exponentials.masked_fill(conflicts, 0) @ units.double() + 0.5 * fixed
    assert_close((weighted * rescale[:, :, None]).sum(0), of_centers, dtype)
    if not fixed:
        torch.testing.assert_close(top.double(), logits.amax(1), rtol=1e-5, atol=1e-5)


def test_softmax_sums_without_gradient_are_the_same() -> None:
    """A loss that is not differentiated writes no weighted centers."""
    scaled, units, places = operands(torch.float32)
    found = []
    for weighted in (None, torch.zeros(1, BATCH, WIDTH)):
        tops, sums = torch.zeros(1, BATCH), torch.zeros(1, BATCH)
        softmax_sums[2, 1](scaled, units, places, tops, sums, weighted, BATCH, ROWS, FIRST, 4, tile())
        found.append(sums)
    assert torch.equal(*found)


@pytest.mark.parametrize("conflict", [None, 5.0])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_center_gradient_of_a_ragged_chunk_equals_float64(dtype: torch.dtype, conflict: float | None) -> None:
    """The targets' weights where the target is in the chunk, nothing from conflicts."""
    scaled, units, places = operands(dtype)
    factors = torch.rand(3, BATCH, generator=torch.Generator().manual_seed(1))
    out = torch.full((ROWS, WIDTH), torch.nan)
    center_gradient[(4,)](scaled, units, places, factors, out, BATCH, ROWS, FIRST, tile(conflict))
    logits, target = wanted_logits(scaled, units, places)
    top, weight, target_weight = factors.double()[:, :, None]
    slope = torch.exp(logits - top) * weight
    if conflict is not None:
        slope = slope.masked_fill(logits > conflict, 0)
    slope = torch.where(target, target_weight, slope)
    assert_close(out, slope.T @ scaled.double(), dtype)


# Shared memory that a block may use, in KB, by compute capability: H100, A100, RTX 30, B200, RTX 50.
SHARED_KB = {90: 227, 80: 163, 86: 99, 100: 227, 120: 99}
GPUS = [pytest.param(kind, marks=[] if kind == 90 else pytest.mark.long) for kind in SHARED_KB]


@pytest.fixture(scope="module", params=GPUS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Bytes of shared memory of a kind of GPU, and the resources of the kernels of four steps compiled for it."""
    out, shared = tmp_path_factory.mktemp("compiled") / "out", 1024 * SHARED_KB[request.param]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(out.parent / "cache")}
    command = [sys.executable, "-m", "tests.heads.fused_compile", str(out), str(request.param), str(shared)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return shared, torch.load(out)


def test_kernels_of_a_step_compiled_for_a_gpu_fit_its_multiprocessors(compiled: tuple[int, dict[str, Any]]) -> None:
    """Shared memory of a block, and registers without spilling: a few bytes of stack are not in the loop."""
    shared, kernels = compiled
    names = {name.split()[0] for name in kernels}
    assert names == {"_unit_rows", "softmax_sums", "center_gradient", "_sgd_rows"}
    assert max(kernel["shared"] for kernel in kernels.values()) <= shared
    assert max(kernel["STACK"] for kernel in kernels.values()) <= 96


def test_bf16_products_compiled_for_a_gpu_use_its_tensor_cores(compiled: tuple[int, dict[str, Any]]) -> None:
    products = [kernel["products"] for name, kernel in compiled[1].items() if name.startswith(("softmax", "center"))]
    assert len(products) == 12
    assert min(products[:9]) > 0
    assert max(products[9:]) == 0  # of fp32


def test_fused_head_on_a_gpu_with_little_shared_memory_raises_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Turing's 64 KB."""
    monkeypatch.setattr(Multiprocessor, "of", lambda device: Multiprocessor(65536, tensor_memory=False))
    with pytest.raises(ValueError, match=r"cpu has 65536 bytes .* must have at least 101376, .*head\.kernel=chunked$"):
        check_fused_storage(torch.device("cpu"), torch.float32)
