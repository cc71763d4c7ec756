"""Array types and checks: embeddings (N, D), the rows of an identity adjacent, offsets (I + 1,) of I identities."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_KINDS = {"b": "numbers", "i": "numbers", "u": "numbers", "f": "numbers", "U": "strings", "S": "bytes"}


def identities_of(ids: ArrayLike, name: str) -> tuple[NDArray[Any], str]:
    """Return identities as an array, in which equal ones are equal, and what they are: numbers, strings or bytes.

    Args:
        ids: identities, of one type.
        name: name of the argument, for messages.

    Raises:
        ValueError: they are of several types, or of another one, or one is missing (None or NaN).
    """
    values = np.asarray(ids)
    if values.dtype.kind == "O":
        types = {type(value) for value in values.flat}
        if not any(all(issubclass(each, one) for each in types) for one in (str, bytes, (int, float, np.number))):
            found = ", ".join(sorted(each.__name__ for each in types))
            raise ValueError(
                f"{name}: hold {found}: must be all strings or all numbers; leave out images that have none"
            )
        values = np.array(values.tolist())  # for numbers too large for a dtype, objects again
    kind = _KINDS.get(values.dtype.kind, "numbers" if values.dtype.kind == "O" else "")
    if not kind:
        raise ValueError(f"{name}: are {values.dtype}: must be numbers or strings")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError(f"{name}: {np.count_nonzero(np.isnan(values))} are NaN: leave out images that have none")
    return values, kind


def group_offsets(labels: ArrayLike) -> Ints:
    """Return the offsets (I + 1,) of the identities: where each begins, and N.

    Args:
        labels: (N,), equal ones adjacent, in any order.

    Raises:
        ValueError: the rows of a label are not adjacent.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"labels shape {values.shape}: must be (N,)")
    if len(values) == 0:
        return np.zeros(1, np.int64)
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    if len(np.unique(values[starts])) < len(starts):
        raise ValueError("labels: the rows of an identity must be adjacent: sort by label")
    return np.r_[starts, len(values)].astype(np.int64)


def check_embeddings(embeddings: ArrayLike) -> Floats:
    """Return embeddings as C-contiguous (N, D) float16, float32 or float64; copies only if they are not.

    Values are not checked.

    Raises:
        ValueError: another shape, or not numeric.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"embeddings shape {values.shape}: must be (images, embedding size)")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"embeddings dtype {values.dtype}: must be numbers, float16 or float32")
    kind = values.dtype if values.dtype in (np.float16, np.float32) else np.float64
    return np.ascontiguousarray(values, kind)


def row_norms(embeddings: Floats) -> NDArray[np.float64]:
    """Return the lengths of rows (N, D), (N,): squares of float32 values overflow at 2e19 and vanish at 4e-23."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    return norms


def check_offsets(offsets: ArrayLike, num_rows: int | None = None) -> Ints:
    """Return offsets as (I + 1,) int64.

    Raises:
        ValueError: they do not rise from 0 to num_rows (where given).
    """
    values = np.asarray(offsets)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iu":
        raise ValueError(f"offsets shape {values.shape} dtype {values.dtype}: must be (identities + 1,) integers")
    values = values.astype(np.int64, copy=False)
    num_rows = int(values[-1]) if num_rows is None else num_rows
    if values[0] != 0 or values[-1] != num_rows or (np.diff(values) < 0).any():
        raise ValueError(f"offsets: must rise from 0 to {num_rows}, the number of images; group_offsets computes them")
    return values
