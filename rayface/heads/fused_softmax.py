"""Margin softmax by Triton kernels that keep no logits: `head.kernel=fused`. Not run on a GPU yet.

One pass over the unit rows gives the sums and the weighted centers of `sharded_softmax`; the update recomputes the
logits tile by tile. So a step has four matrix products instead of three, and no matrix of batch x classes.
The kernels' partial sums, one for each strip of classes, are added in a fixed order.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rayface.heads.margins import Margin
from rayface.heads.sharded_softmax import GPU_CHUNK_ROWS, PendingGradient, ShardSoftmax
from rayface.triton_compiler import check_triton_compiler

if TYPE_CHECKING:
    from rayface.heads.fused_kernels import SoftmaxTile

LARGEST_WIDTH = 512  # a tile's sums fill the registers
PROGRAMS = 128  # that run side by side: about the multiprocessors of a GPU; a constant, for sums in the same order
MOST_HELD = 128


class Multiprocessor(NamedTuple):
    """What limits the tiles of a kernel."""

    shared_memory: int
    """Bytes that a program may use."""
    tensor_memory: bool
    """Products read and write a memory of their own (Blackwell), for which Triton copies operands once more."""

    @classmethod
    def of(cls, device: torch.device) -> Multiprocessor:
        """Ask a GPU; the interpreter has no limits and gets those of an H100."""
        if device.type != "cuda":
            return cls(shared_memory=227 * 1024, tensor_memory=False)
        found = torch.cuda.get_device_properties(device)
        # AMD's have no larger limit to opt in to
        shared_memory = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
        return cls(shared_memory=shared_memory, tensor_memory=found.major in (10, 11))


LEAST_SHARED, LARGE_SHARED = 99 * 1024, 163 * 1024  # GPUs of compute capability 8.6 and 8.0


class TileRows(NamedTuple):
    """Rows of the operand that a program holds, and of the one that streams past it in `stages` buffers."""

    held: int
    streamed: int
    stages: int = 2

    @classmethod
    def fitting(cls, limits: Multiprocessor, width: int, dtype: torch.dtype) -> TileRows:
        """Return the tiles that fit the shared memory; tests compile them for each kind of GPU."""
        narrow = 2 * width <= LARGEST_WIDTH
        if dtype == torch.float32:
            return cls(32, 16)
        if limits.shared_memory < LARGE_SHARED:
            return cls(64, 64) if narrow else cls(32, 32)
        if narrow:
            return cls(MOST_HELD, 64)
        return cls(64, 64, stages=1 if limits.tensor_memory else 2)


def interpreted() -> bool:
    """Return whether Triton interprets its kernels, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_fused(margin: Margin, embedding_size: int) -> None:
    """Refuse what the fused kernels cannot compute on any device.

    Raises:
        ValueError: one line.
    """
    if type(margin).modulate_negatives_ is not Margin.modulate_negatives_:
        raise ValueError(
            f"head.kernel 'fused': head.margin {type(margin).__name__} changes the logits of other classes, and the "
            "kernels change only the target's: choose another margin, or head.kernel=chunked"
        )
    if embedding_size > LARGEST_WIDTH:
        raise ValueError(
            f"head.kernel 'fused': backbone.embedding_size {embedding_size} must be at most {LARGEST_WIDTH}, or set "
            "head.kernel=chunked"
        )


def check_fused_device(device_type: str) -> None:
    """Refuse a device that runs no Triton kernels.

    Raises:
        ValueError: one line.
    """
    if device_type != "cuda" and not interpreted():
        raise ValueError(f"head.kernel 'fused': runs on CUDA GPUs, not on {device_type}: set head.kernel=chunked")


def check_fused_storage(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a rank's device that the kernels do not fit, or class centers of a type that they do not take.

    Raises:
        ValueError: one line.
    """
    check_fused_device(device.type)
    if dtype == torch.float64:
        raise ValueError("head.kernel 'fused': storage_dtype fp64 must be fp32 or bf16, or set head.kernel=chunked")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("head.kernel 'fused': needs the package triton: install it, or set head.kernel=chunked")
    if (shared := Multiprocessor.of(device).shared_memory) < LEAST_SHARED:
        raise ValueError(
            f"head.kernel 'fused': {device} has {shared} bytes of shared memory per block and must have at least "
            f"{LEAST_SHARED}, as NVIDIA GPUs since 2020: set head.kernel=chunked"
        )
    if not interpreted():
        check_triton_compiler("head.kernel 'fused'", "set head.kernel=chunked")


def partial_bytes(batch: int, width: int) -> int:
    """Return the bytes of the partial sums, at most."""
    return 4 * max(PROGRAMS * MOST_HELD, batch) * (width + 2)


class FusedSoftmax(ShardSoftmax):
    """Computes sums and gradients over one rank's rows in Triton kernels.

    Memory: the partial sums (`partial_bytes`), and chunks of GPU_CHUNK_ROWS unit rows, which stay in a GPU's cache.
    """

    def chunk_rows(self, batch: int) -> int:
        """Return the rows of a chunk."""
        return GPU_CHUNK_ROWS

    def keep_buffer(self, num_rows: int, batch: int) -> Tensor:
        """Return no memory: exponentials are not kept."""
        return torch.empty(0, batch, dtype=self.product_dtype, device=self.centers.device)

    def accumulate(
        self, pending: PendingGradient, want_weighted_centers: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Pass over the rows once; see `ShardSoftmax.accumulate`."""
        from rayface.heads.fused_kernels import softmax_sums

        batch, width = pending.unit.shape
        held, streamed, stages = self._tile_rows(width)
        tile = self._tile(samples=held, classes=streamed, fixed=pending.base is not None)
        across = -(-batch // held)
        step = min(self.chunk_rows(batch), pending.num_rows)
        strips = max(1, min(PROGRAMS // across, -(-step // streamed)))
        base = torch.finfo(torch.float32).min if pending.base is None else pending.base
        tops = pending.unit.new_full((strips, batch), base)  # type: ignore[arg-type]
        sums = torch.zeros_like(tops)
        weighted = pending.unit.new_zeros(strips, batch, width) if want_weighted_centers else None
        for lo in range(0, pending.num_rows, step or 1):
            units = self._units(pending, lo, min(lo + step, pending.num_rows))
            strip_tiles = -(-len(units) // (streamed * strips))
            operands = (pending.scaled, units, pending.target_places, tops, sums, weighted)
            sizes = (batch, len(units), lo, strip_tiles)
            with torch.cuda.device_of(units):  # Triton launches on the current device
                softmax_sums[across, strips](*operands, *sizes, tile, **_launch(tile, stages))
        running_max = None
        if pending.base is None:
            running_max = tops.amax(0)
            rescale = torch.exp(tops - running_max)
            sums *= rescale
            if weighted is not None:
                weighted *= rescale[:, :, None]
        return sums.sum(0), None if weighted is None else weighted.sum(0), running_max

    def gradient_factors(self, pending: PendingGradient) -> Tensor:
        """Return what `center_gradient` needs of each sample, (3, B): base, and the factors of its coefficients."""
        assert pending.base is not None
        assert pending.weight is not None
        assert pending.target_weight is not None
        assert pending.factor is not None
        factors = torch.zeros(3, len(pending.weight), device=pending.weight.device)
        factors[0] = pending.base
        factors[1] = pending.weight
        factors[2, pending.samples] = pending.target_weight
        # the kernel multiplies by the embeddings times the scale
        factors[1:] *= pending.factor / self.margin.scale
        return factors

    def center_gradient(self, pending: PendingGradient, factors: Tensor, lo: int, hi: int, out: Tensor) -> Tensor:
        """Fill out, (hi - lo, D) fp32, with the loss's gradient by the unit rows at places lo..hi-1."""
        from rayface.heads.fused_kernels import center_gradient

        if hi > lo:
            held, streamed, stages = self._tile_rows(out.shape[1])
            tile = self._tile(samples=streamed, classes=held)
            operands = (pending.scaled, self._units(pending, lo, hi), pending.target_places, factors, out)
            sizes = (len(pending.unit), hi - lo, lo)
            with torch.cuda.device_of(out):
                center_gradient[(-(-(hi - lo) // held),)](*operands, *sizes, tile, **_launch(tile, stages))
        return out

    def _units(self, pending: PendingGradient, lo: int, hi: int) -> Tensor:
        units = self.workspace.get("units", (hi - lo, pending.unit.shape[1]), self.product_dtype)
        return self.centers.read_units(pending.block(lo, hi), units, pending.fetched_rows(lo, hi))

    def _tile_rows(self, width: int) -> TileRows:
        return TileRows.fitting(Multiprocessor.of(self.centers.device), width, self.product_dtype)

    def _tile(self, *, samples: int, classes: int, fixed: bool = True) -> SoftmaxTile:
        from rayface.heads.fused_kernels import SoftmaxTile
        from rayface.heads.fused_rows import padded_width

        width, threshold = self.centers.values.shape[1], self.margin.conflict_threshold
        return SoftmaxTile(
            width=width,
            padded=padded_width(width),
            samples=samples,
            classes=classes,
            conflict=None if threshold is None else self.margin.scale * threshold,
            fixed=fixed,
            emulated=interpreted(),
        )


def _launch(tile: SoftmaxTile, stages: int) -> dict[str, int]:
    """Return the options of a launch; the interpreter takes none."""
    return {} if tile.emulated else {"num_warps": 8, "num_stages": stages}
