"""Class centers of one rank: a contiguous range of rows of the logical (C, D) matrix, and their optimizer."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayface.heads.row_passes import RowSgd, row_passes
from rayface.heads.sampling import keyed_generator

if TYPE_CHECKING:
    from rayface.heads.row_passes import AnyRowPasses

OPTIMIZERS = ("sgd", "adamw")
SHORTEST = 1e-12  # shorter rows are taken as zero: they have no direction
INIT_BLOCK = 4096  # rows drawn from one key; makes the initial matrix independent of the world size
NOISE_SIZE = 1 << 20  # int32 of rounding noise, a power of two and a multiple of 65536; 4 MB fit a core's cache
Block = Tensor | slice  # rows of the local range: sorted distinct int64 (n,), or a slice that needs no copy


def class_range(num_classes: int, world_size: int, rank: int) -> tuple[int, int]:
    """Return (first, last + 1) of the classes that a rank holds: C // W, one more for the first C % W ranks."""
    share, rest = divmod(num_classes, world_size)
    first = rank * share + min(rank, rest)
    return first, first + share + (rank < rest)


def initial_rows(first: int, last: int, width: int, seed: int, out: Tensor) -> None:
    """Fill out with rows first..last-1 of the initial N(0, 0.01) matrix, the same for any split into ranks.

    Drawn on the CPU in threads, so that the numbers do not depend on the device.
    """

    in_place = out.device.type == "cpu" and out.dtype == torch.float32

    def fill(block: int) -> None:
        generator = keyed_generator("cpu", seed, "init", block)
        start = block * INIT_BLOCK
        lo, hi = max(first, start), min(last, start + INIT_BLOCK)
        if in_place and hi - lo == INIT_BLOCK:
            out[lo - first : hi - first].normal_(0, 0.01, generator=generator)
        else:
            values = torch.empty(INIT_BLOCK, width).normal_(0, 0.01, generator=generator)
            out[lo - first : hi - first].copy_(values[lo - start : hi - start])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(first // INIT_BLOCK, -(-last // INIT_BLOCK))))


class Workspace:
    """Buffers reused between steps: allocating new pages costs more than the arithmetic on them."""

    def __init__(self, device: torch.device, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised contiguous tensor; calls with the same name share memory."""
        size = shape[0] * shape[1]
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=self._device, pin_memory=self._pinned)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


@dataclass(frozen=True, kw_only=True)
class CenterOptimizer:
    """Optimizer of the class centers, "sgd" or "adamw", as in torch.optim; AdamW counts its steps by row."""

    name: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments, matrices of the size of the centers."""
        if self.name == "adamw":
            return "exp_avg", "exp_avg_sq"
        return ("momentum",) if self.momentum else ()


class ClassCenters:
    """Rows of the class centers and of the optimizer's moments, read and updated block by block.

    Memory: rows x width x (1 + moments) numbers of the storage type; nothing else of that size is allocated.
    bf16 storage rounds stochastically, so that updates smaller than its resolution are correct on average.

    Args:
        first: class of row 0, which seeds the rounding: the same for every split into ranks.
        host_memory: keep the storage in (with a GPU: pinned) host memory and move only the current blocks.
        seed: seed of the rounding.
        fused: pass over rows that lie on the device in Triton kernels.
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        *,
        optimizer: CenterOptimizer,
        dtype: torch.dtype,
        device: torch.device,
        host_memory: bool,
        seed: int,
        first: int = 0,
        fused: bool = False,
    ) -> None:
        self.optimizer, self.device = optimizer, device
        pinned = host_memory and device.type != "cpu"
        home = torch.device("cpu") if host_memory else device
        self.values = torch.empty(num_rows, width, dtype=dtype, device=home, pin_memory=pinned)
        # Write the memory, so that a lack of it fails now, not after a thousand steps.
        self.moments = {name: torch.empty_like(self.values, pin_memory=pinned).zero_() for name in optimizer.moments}
        if optimizer.name == "adamw":
            self.moments["updates"] = torch.zeros(num_rows, 1, dtype=torch.int32, device=home, pin_memory=pinned)
        self._workspace = Workspace(device)
        self._staging = Workspace(home, pinned) if host_memory else None
        self._rounding = StochasticRounding(seed, width, device, first) if dtype == torch.bfloat16 else None
        self._passes = row_passes(device, fused=fused and not host_memory)

    @property
    def math_dtype(self) -> torch.dtype:
        """fp64 for fp64 storage, else fp32."""
        return torch.float64 if self.values.dtype == torch.float64 else torch.float32

    def __len__(self) -> int:
        return self.values.shape[0]

    def begin_step(self, step: int) -> None:
        """Key the random rounding of the coming updates by the step."""
        if self._rounding is not None:
            self._rounding.step = step

    def read(self, block: Block, fetched: Tensor | None = None) -> Tensor:
        """Return the centers of a block, (n, D) in the math type; a view of the storage where possible.

        Args:
            fetched: the block's rows in the storage type, (n, D), if they were prefetched to the device.
        """
        if fetched is None:
            return self._read("centers", self.values, block)
        if fetched.dtype == self.math_dtype:
            return fetched
        return self._workspace.get("centers", (fetched.shape[0], fetched.shape[1]), self.math_dtype).copy_(fetched)

    def read_units(self, block: Block, out: Tensor, fetched: Tensor | None = None) -> Tensor:
        """Fill out, (n, D) math type or bf16, with the centers of a block at length 1 (`fetched`: see `read`)."""
        if self._passes is None:
            rows = self.read(block, fetched)
            return torch.mul(rows, inverse_norms(rows), out=out)
        if fetched is None:
            self._passes.unit_rows(self.values, block, out)
        else:
            self._passes.unit_rows(fetched, slice(0, len(fetched)), out)
        return out

    def _read(self, name: str, storage: Tensor, block: Block) -> Tensor:
        count = block.stop - block.start if isinstance(block, slice) else block.numel()
        shape = (count, storage.shape[1])
        if isinstance(block, slice):
            rows = storage[block]
        else:
            space = self._staging or self._workspace
            rows = space.get(name, shape, storage.dtype)
            torch.index_select(storage, 0, block.to(storage.device), out=rows)
        wanted = torch.int32 if storage.dtype == torch.int32 else self.math_dtype
        if self._staging is not None:
            # between devices in the storage type: PyTorch converts on the CPU, in memory that is not page-locked
            rows = self._workspace.get(name, shape, storage.dtype).copy_(rows)
        return rows if rows.dtype == wanted else self._workspace.get(name, shape, wanted).copy_(rows)

    def _write(self, name: str, block: Block, rows: Tensor) -> None:
        storage = self.values if name == "centers" else self.moments[name]
        if self._rounding is not None and rows.is_floating_point():
            self._rounding.round_(rows, block, name)
        shape = (rows.shape[0], rows.shape[1])
        if rows.dtype != storage.dtype and (self._staging is not None or not isinstance(block, slice)):
            # what `_read` left there was read into another buffer
            rows = self._workspace.get(name, shape, storage.dtype).copy_(rows)
        if not isinstance(block, slice):
            if self._staging is not None:
                rows = self._staging.get(name, shape, storage.dtype).copy_(rows)
            storage.index_copy_(0, block.to(storage.device), rows)
        elif rows.data_ptr() != storage[block].data_ptr():
            storage[block] = rows

    def update(self, block: Block, gradient: Tensor, lr: float, fetched: Tensor | None = None) -> None:
        """Update a block by the gradient with respect to its unit rows, (n, D) math type.

        Overwrites `gradient` and `fetched`, the block's rows as of `read`. Applies the chain rule through w / |w|:
        d/dw = (g - (g . u) u) / |w|. A row of zeros has no direction and gets no gradient.
        """
        if self._passes is not None and self.optimizer.name == "sgd":
            self._sgd_in_one_pass(self._passes, block, gradient, lr)
            return
        rows = self.read(block, fetched)
        inverse = inverse_norms(rows)
        products = self._workspace.get("products", (rows.shape[0], rows.shape[1]), rows.dtype)
        radial = torch.mul(gradient, rows, out=products).sum(1, keepdim=True)
        pull = radial.mul_(inverse.pow(3)).neg_()
        if self.optimizer.name == "sgd":
            self._sgd(block, rows, gradient, inverse, pull.add_(self.optimizer.weight_decay), lr)
        else:
            self._adamw(block, rows, gradient.mul_(inverse).addcmul_(rows, pull), lr)

    def _sgd_in_one_pass(self, passes: AnyRowPasses, block: Block, gradient: Tensor, lr: float) -> None:
        velocity, noise = self.moments.get("momentum"), None
        if self._rounding is not None:
            noise = (self._rounding.noise, self._rounding.start("momentum"), self._rounding.start("centers"))
        sgd = RowSgd(lr=lr, momentum=self.optimizer.momentum, weight_decay=self.optimizer.weight_decay, noise=noise)
        passes.sgd_rows(self.values, velocity, block, gradient, sgd)

    def _sgd(self, block: Block, rows: Tensor, gradient: Tensor, inverse: Tensor, pull: Tensor, lr: float) -> None:
        """Add both parts of the gradient to the momentum directly, which saves a pass over memory."""
        if self.optimizer.momentum:
            step = self._read("momentum", self.moments["momentum"], block).mul_(self.optimizer.momentum)
            step.addcmul_(gradient, inverse).addcmul_(rows, pull)
            self._write("momentum", block, step)
        else:
            step = gradient.mul_(inverse).addcmul_(rows, pull)
        self._write("centers", block, rows.add_(step, alpha=-lr))

    def _adamw(self, block: Block, rows: Tensor, gradient: Tensor, lr: float) -> None:
        first = self._read("exp_avg", self.moments["exp_avg"], block)
        second = self._read("exp_avg_sq", self.moments["exp_avg_sq"], block)
        # Steps are counted by row: bias correction starts when a class is first used.
        count = self._read("updates", self.moments["updates"], block).add_(1)
        age = count.to(self.math_dtype)
        beta_1, beta_2 = self.optimizer.betas
        first.lerp_(gradient, 1 - beta_1)
        second.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        root = torch.sqrt(second, out=gradient).div_((1 - beta_2**age).sqrt_()).add_(self.optimizer.eps)
        rows.mul_(1 - lr * self.optimizer.weight_decay)
        step = torch.div(first, root, out=root).mul_(-lr / (1 - beta_1**age))
        self._write("centers", block, rows.add_(step))
        self._write("exp_avg", block, first)
        self._write("exp_avg_sq", block, second)
        self._write("updates", block, count)


def inverse_norms(rows: Tensor) -> Tensor:
    """Return 1 / |row|, (n, 1), and 0 for rows shorter than 1e-12."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms < SHORTEST, 0.0, norms.clamp_min(SHORTEST).reciprocal())


@lru_cache(maxsize=2)
def _noise(seed: int, width: int) -> Tensor:
    values = torch.randperm(NOISE_SIZE, generator=keyed_generator("cpu", seed, "rounding")).bitwise_and_(0xFFFF)
    return torch.cat([values, values.repeat(-(-width // NOISE_SIZE))[:width]]).to(torch.int32)


class StochasticRounding:
    """Stochastic rounding of fp32 to bf16: up or down at random, with the exact value as mean.

    The noise of a row is a slice of one fixed sequence, because drawing fresh noise would cost more than the update.
    Its start depends only on (seed, step, tensor, class), not on blocks, ranks, micro-batches or earlier steps. The
    sequence is a permutation of 16 times all 65536 values, so that rounding has no bias.

    Args:
        seed: of the sequence and of the start positions.
        width: numbers in a row.
        device: of the rows.
        first: class of row 0.

    Attributes:
        noise: (NOISE_SIZE + width,) int32 in [0, 65536), the first `width` again at the end.
        step: the step of the coming updates.
    """

    def __init__(self, seed: int, width: int, device: torch.device, first: int = 0) -> None:
        self._seed, self._width, self._first = seed, width, first
        self.step = 0
        self.noise = _noise(seed, width).to(device)

    def start(self, name: str) -> int:
        """Return where the noise of row 0 of a tensor starts; that of row k starts k * width later, modulo the size."""
        key = f"{self._seed} {self.step} {name}".encode()
        place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        return (place + self._first * self._width) % NOISE_SIZE

    def round_(self, rows: Tensor, block: Block, name: str) -> None:
        """Round the rows of a block of the tensor `name`, contiguous fp32 (n, width), in place."""
        if isinstance(block, slice):
            block = torch.arange(block.start, block.stop, device=rows.device)
        starts = (block.to(rows.device) * self._width + self.start(name)) % NOISE_SIZE
        stretches = self.noise.unfold(0, self._width, 1)  # a view: row s is the slice that starts at s
        # a carry out of the lower half happens with probability lower / 65536
        rows.view(torch.int32).add_(stretches[starts]).bitwise_and_(-65536)
