"""Face-NMS of whole identities, compiled by numba: no padding, no pair matrix, decided as in float64.

A cosine is first computed from unit embeddings in 16-bit integers, with a bounded error; only if the bound does not
decide is it computed in float64.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rayface.arrays import Bools, Floats, Ints
from rayface.compiled import compiled

SCORE_DECIMALS = 12  # scores that differ only by rounding tie, as those of an identity with two images always do
MAX_BLOCK = 512  # rows; two such blocks of 16-bit integers fit a core's cache
_ONE = 32767  # what 1 is in 16-bit integers
_NONE = -1


@intrinsic
def _widened(_context, value):  # type: ignore[no-untyped-def]
    """float16 bits (uint16) as float32, because numba has no float16 on CPUs; other types unchanged."""
    result = types.float32 if value == types.uint16 else value

    def codegen(_, builder, signature, args):  # type: ignore[no-untyped-def]
        if signature.args[0] != types.uint16:
            return args[0]
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return result(value), codegen


@intrinsic
def _product(_context, value, factor):  # type: ignore[no-untyped-def]
    """value * factor: of float16 bits in float32, which holds every such norm and its inverse; else in float64."""
    half = value == types.uint16

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if half:
            wide = builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
            return builder.fmul(wide, builder.fptrunc(args[1], ir.FloatType()))
        return builder.fmul(context.cast(builder, args[0], signature.args[0], types.float64), args[1])

    return (types.float32 if half else types.float64)(value, factor), codegen


def suppress_identities(
    values: Floats,
    offsets: Ints,
    bonus: NDArray[np.float64],
    threshold: float,
    min_images: int,
    most_compared: int,
    units: NDArray[np.int16],
    kept: Bools,
    score: NDArray[np.float32],
    suppressed_by: Ints,
) -> int:
    """Fill kept, score and suppressed_by for the identities between offsets; see `face_nms.suppress_many`.

    Runs without the GIL, on one thread. Compiled at the first call (seconds; kept in numba's cache).

    Args:
        values: (N, D) float16, float32 or float64, C-contiguous.
        offsets: (k + 1,) rows where the identities begin, and where the last one ends.
        bonus: (N,) added to the scores.
        most_compared: kept images before its block of MAX_BLOCK ranks that an image is compared with, nearest in rank.
        units: (2, rows of an identity that are compared at a time, D), to work in.

    Returns:
        The first row without a direction, else -1.
    """
    stored = values.view(np.uint16 if values.dtype == np.float16 else values.dtype)
    stored.flags.writeable = False  # or what may be written and what may not would be compiled twice
    extra = np.array(bonus[offsets[0] : offsets[-1]])
    settings = threshold, min_images, most_compared
    return int(_suppress(stored, offsets.copy(), extra, *settings, units, kept, score, suppressed_by))


@compiled
def _suppress(  # type: ignore[no-untyped-def]
    values, offsets, bonus, threshold, min_images, most_compared, units, kept, score, suppressed_by
):
    size, block = values.shape[1], units.shape[1]
    most = np.diff(offsets).max()
    mean, inverse, exact, order = np.empty(size), np.empty(most), np.empty(most), np.empty(most, np.int64)
    stay = np.empty(most, np.int64)  # kept faces in order of score
    left, right, left_rows, right_rows = units[0], units[1], np.empty(block, np.int64), np.empty(block, np.int64)
    for k in range(len(offsets) - 1):
        first, n = offsets[k], offsets[k + 1] - offsets[k]
        faces, by = values[first : first + n], suppressed_by[first : first + n]
        since = first - offsets[0]
        bad = _score(faces, bonus[since : since + n], mean, inverse, exact)
        if bad != _NONE:
            return first + bad
        _sort(exact, n, order)
        by[:] = _NONE
        start, count, oldest = 0, 0, 0
        while start < n:
            if start % MAX_BLOCK == 0:
                oldest = max(0, count - most_compared)
            stop = min(n, start + block, (start // MAX_BLOCK + 1) * MAX_BLOCK)
            b = _take(faces, inverse, order, start, stop, right, right_rows)
            for earlier in range(oldest, count, block):
                a = _take(faces, inverse, stay, earlier, min(count, earlier + block), left, left_rows)
                _drop(faces, inverse, threshold, left, left_rows, a, right, right_rows, b, False, by)
                b = _compact(right, right_rows, b, by)
                if b == 0:
                    break
            _drop(faces, inverse, threshold, right, right_rows, b, right, right_rows, b, True, by)
            for i in range(b):
                if by[right_rows[i]] == _NONE:
                    stay[count] = right_rows[i]
                    count += 1
            start = stop
        _bring_back(order, n, min_images, by)
        for i in range(n):
            kept[first + i] = by[i] == _NONE
            score[first + i] = exact[i]
            if by[i] != _NONE:
                by[i] += first
    return _NONE


@compiled
def _score(faces, bonus, mean, inverse, exact):  # type: ignore[no-untyped-def]
    """Fill inverse norms and the scores in float64; return a face without a direction, or -1."""
    n, size = faces.shape
    mean[:] = 0
    for i in range(n):
        square = 0.0
        for d in range(size):
            value = np.float64(_widened(faces[i, d]))
            square += value * value
        if not (0 < square < np.inf):
            return i
        inverse[i] = 1 / np.sqrt(square)
        for d in range(size):
            mean[d] += _widened(faces[i, d]) * inverse[i]
    for i in range(n):
        product = 0.0
        for d in range(size):
            product += _widened(faces[i, d]) * mean[d]
        ones = 10.0**SCORE_DECIMALS
        exact[i] = np.rint((1 - product * inverse[i] / n + bonus[i]) * ones) / ones
    return _NONE


@compiled
def _sort(exact, n, order):  # type: ignore[no-untyped-def]
    """Fill order with faces by falling score, ties by index: Shell's sort, in no more memory."""
    for i in range(n):
        order[i] = i
    gap = 1
    while 9 * gap < n:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            face, k = order[i], i
            while k >= gap:
                other = order[k - gap]
                if exact[other] > exact[face] or (exact[other] == exact[face] and other < face):
                    break
                order[k] = other
                k -= gap
            order[k] = face
        gap //= 3


@compiled
def _take(faces, inverse, order, start, stop, units, rows):  # type: ignore[no-untyped-def]
    """Put order[start:stop] into rows, and their unit embeddings into units; return how many."""
    for k in range(start, stop):
        i = order[k]
        rows[k - start] = i
        times = inverse[i] * _ONE
        for d in range(faces.shape[1]):
            units[k - start, d] = np.int16(np.rint(_product(faces[i, d], times)))
    return stop - start


@compiled
def _compact(units, rows, num_rows, by):  # type: ignore[no-untyped-def]
    """Move the rows that nothing dropped to the front; return how many."""
    count = 0
    for k in range(num_rows):
        if by[rows[k]] == _NONE:
            if count < k:
                rows[count] = rows[k]
                units[count] = units[k]
            count += 1
    return count


@compiled
def _drop(  # type: ignore[no-untyped-def]
    faces, inverse, threshold, left, left_rows, num_left, right, right_rows, num_right, same, by
):
    """Drop right faces for the left ones, in order; among themselves if they are the same."""
    size = faces.shape[1]
    # a value is off by at most .51 (rounding), hence by Cauchy and Schwarz the product of unit embeddings by so much:
    unsure = 1.02 * np.sqrt(size) / _ONE + 0.27 * size / _ONE**2
    low, high = np.floor((threshold - unsure) * _ONE**2), np.ceil((threshold + unsure) * _ONE**2)
    for a in range(num_left):
        i = left_rows[a]
        if by[i] != _NONE:
            continue
        for b in range(a + 1 if same else 0, num_right):
            j = right_rows[b]
            if by[j] != _NONE:
                continue
            product = np.int32(0)
            for d in range(size):
                product = np.int32(product + np.int32(left[a, d]) * np.int32(right[b, d]))
            if product > high or (product >= low and _cosine(faces, inverse, i, j) > threshold):
                by[j] = i


@compiled
def _cosine(faces, inverse, i, j):  # type: ignore[no-untyped-def]
    """In float64, never above 1."""
    product = 0.0
    for d in range(faces.shape[1]):
        product += np.float64(_widened(faces[i, d])) * np.float64(_widened(faces[j, d]))
    return min(1.0, product * inverse[i] * inverse[j])


@compiled
def _bring_back(order, n, min_images, by):  # type: ignore[no-untyped-def]
    """Keep the dropped faces of the highest score, if fewer than min_images are kept."""
    missing = min(min_images, n)
    for i in range(n):
        missing -= by[i] == _NONE
    for k in range(n):
        if missing > 0 and by[order[k]] != _NONE:
            by[order[k]] = _NONE
            missing -= 1
