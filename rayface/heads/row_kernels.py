"""Fused CPU kernels over rows of class centers, compiled by numba.

As separate torch operations, a step reads and writes each row a dozen times, mostly from main memory; a kernel reads
it twice and writes it once. `class_centers` and `sharded_softmax` have the same computation in torch, for GPUs and for
optimizers without a kernel.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.typing import Context, Signature
from numba.extending import intrinsic
from torch import Tensor

from rayface.compiled import compiled
from rayface.heads.class_centers import NOISE_SIZE, SHORTEST
from rayface.heads.row_passes import RowSgd

Arguments = Sequence[ir.Value]
Intrinsic = tuple[Signature, Callable[[Context, ir.IRBuilder, Signature, Arguments], ir.Value]]
"""What numba asks of an intrinsic: its signature and its code generator."""
Number = np.float32 | np.float64


@intrinsic
def _widened(_context: Context, value: types.Type) -> Intrinsic:
    """bf16 bits (uint16) as float32; other types unchanged."""
    half = value == types.uint16

    def codegen(_: Context, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        if not half:
            return args[0]
        bits = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return (types.float32 if half else value)(value), codegen


@intrinsic
def _narrowed(_context: Context, value: types.Type, noise: types.Type) -> Intrinsic:
    """The upper 16 bits of float32 + noise (int32, of the lower 16 bits) as bf16 bits."""

    def codegen(_: Context, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        bits = builder.add(builder.bitcast(args[0], ir.IntType(32)), args[1])
        return builder.trunc(builder.lshr(bits, ir.Constant(ir.IntType(32), 16)), ir.IntType(16))

    return types.uint16(types.float32, types.int32), codegen


@intrinsic
def _nearest(_context: Context, value: types.Type, like: types.Type) -> Intrinsic:
    """A number as bf16 bits, ties to even, if `like` is uint16; else unchanged."""
    half = like == types.uint16

    def codegen(_: Context, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        if not half:
            return args[0]
        word, half_word = ir.IntType(32), ir.IntType(16)
        single = args[0] if value == types.float32 else builder.fptrunc(args[0], ir.FloatType())
        bits = builder.bitcast(single, word)
        sixteen, one = ir.Constant(word, 16), ir.Constant(word, 1)
        odd = builder.and_(builder.lshr(bits, sixteen), one)
        up = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        # a carry would turn some NaN into a number
        nan = builder.fcmp_unordered("uno", single, single)
        return builder.trunc(builder.lshr(builder.select(nan, bits, up), sixteen), half_word)

    return (types.uint16 if half else value)(value, like), codegen


@compiled
def _unit_rows(
    values: np.ndarray, rows: np.ndarray, out: np.ndarray, zero: Number, one: Number, lo: int, hi: int
) -> None:
    width = values.shape[1]
    for k in range(lo, hi):
        row = values[rows[k]]
        square = zero
        for d in range(width):
            square += _widened(row[d]) * _widened(row[d])
        norm = math.sqrt(square)
        inverse = zero if norm < SHORTEST else one / norm
        for d in range(width):
            out[k, d] = _nearest(_widened(row[d]) * inverse, out[k, d])


@compiled
def _sgd_rows(
    values: np.ndarray,
    momentum: np.ndarray | None,
    rows: np.ndarray,
    gradient: np.ndarray,
    noise: np.ndarray | None,
    settings: tuple[Number, ...],
    starts: tuple[int, int],
    lo: int,
    hi: int,
) -> None:
    width = values.shape[1]
    zero, one, rate, keep, decay = settings
    for k in range(lo, hi):
        row, pushed = values[rows[k]], gradient[k]
        square, radial = zero, zero
        for d in range(width):
            square += _widened(row[d]) * _widened(row[d])
            radial += _widened(row[d]) * pushed[d]
        norm = math.sqrt(square)
        inverse = zero if norm < SHORTEST else one / norm
        pull = decay - radial * inverse * inverse * inverse
        if momentum is not None:
            # two loops: LLVM does not vectorise one loop over all these arrays
            velocity = momentum[rows[k]]
            begin = (starts[0] + rows[k] * width) % NOISE_SIZE
            for d in range(width):
                step = keep * _widened(velocity[d]) + pushed[d] * inverse + _widened(row[d]) * pull
                velocity[d] = step if noise is None else _narrowed(step, noise[begin + d])
            begin = (starts[1] + rows[k] * width) % NOISE_SIZE
            for d in range(width):
                weight = _widened(row[d]) - rate * _widened(velocity[d])
                row[d] = weight if noise is None else _narrowed(weight, noise[begin + d])
        else:
            begin = (starts[1] + rows[k] * width) % NOISE_SIZE
            for d in range(width):
                weight = _widened(row[d]) - rate * (pushed[d] * inverse + _widened(row[d]) * pull)
                row[d] = weight if noise is None else _narrowed(weight, noise[begin + d])


class RowPasses:
    """The compiled passes, on tensors in the CPU's memory.

    Rows are split evenly over the threads; the result does not depend on their number.

    Args:
        threads: how many; None: as many as torch uses.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="row-passes")

    def unit_rows(self, values: Tensor, rows: Tensor | slice, out: Tensor) -> None:
        """Write rows of length 1, and zeros for those without a direction.

        Args:
            values: (N, D) fp64, fp32 or bf16.
            rows: which, (n,) int64.
            out: (n, D), bf16 or the type that values are computed in: theirs, fp32 for bf16.
        """
        read, wanted, filled = _array(values), _indices(rows), _array(out)
        number = np.float64 if values.dtype == torch.float64 else np.float32
        zero, one = number(0), number(1)  # a plain 0 would promote everything to float64
        self._split(len(out), lambda lo, hi: _unit_rows(read, wanted, filled, zero, one, lo, hi))

    def sgd_rows(
        self, values: Tensor, velocity: Tensor | None, rows: Tensor | slice, gradient: Tensor, sgd: RowSgd
    ) -> None:
        """Update rows and their momentum by SGD, from the gradient by the unit rows, through w / |w|.

        Args:
            values, velocity: (N, D) of one type, fp64, fp32 or bf16; velocity None without momentum.
            rows: which, sorted and distinct (n,) int64.
            gradient: (n, D) by the unit rows, fp32 for bf16 values, else of their type.
        """
        type_ = _array(gradient).dtype.type
        settings = tuple(type_(value) for value in (0, 1, sgd.lr, sgd.momentum, sgd.weight_decay))
        pool, starts = (None, (0, 0)) if sgd.noise is None else (_array(sgd.noise[0]), sgd.noise[1:])
        moved, pushed = _array(values), None if velocity is None else _array(velocity)
        wanted, pull = _indices(rows), _array(gradient)
        self._split(
            len(gradient), lambda lo, hi: _sgd_rows(moved, pushed, wanted, pull, pool, settings, starts, lo, hi)
        )

    def _split(self, count: int, work: Callable[[int, int], None]) -> None:
        edges = [count * part // self._threads for part in range(self._threads + 1)]
        others = [self._pool.submit(work, lo, hi) for lo, hi in pairwise(edges[1:])]
        work(edges[0], edges[1])
        for other in others:
            other.result()


def _array(values: Tensor) -> np.ndarray:
    """Return the tensor's memory as an array for numba, bf16 as its bits."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _indices(rows: Tensor | slice) -> np.ndarray:
    return (torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows).numpy()
