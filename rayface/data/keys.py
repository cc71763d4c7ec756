"""Keys of samples in bulk, always in batches: one Arrow `string` array holds at most 2 GB."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayface.storage import DataError, one_line
from rayface.storage.parquet import open_parquet

BATCH = 65_536  # keys held as Python strings at once
_READ_BYTES = 1 << 20  # otherwise pyarrow buffers whole row groups
_MOST_MET = 1000


def read_keys(path: str, rows: NDArray[np.int64] | None = None) -> Iterator[pa.Array]:
    """Yield the column `key` of a parquet file in batches.

    Args:
        rows: rows to read, in rising order; None: all.

    Raises:
        DataError: a key is missing, or the file is corrupt.
    """
    done = 0
    try:
        with open_parquet(path, buffer_size=_READ_BYTES) as file:
            for batch in file.iter_batches(BATCH, columns=["key"]):
                keys = batch["key"].cast(pa.string())
                if keys.null_count:
                    raise DataError(f"{path}: key: is missing in some rows; every sample needs one")
                if rows is not None:
                    first, last = np.searchsorted(rows, [done, done + len(keys)])
                    done += len(keys)
                    keys = keys.take(pa.array(rows[first:last] - done + len(batch)))
                yield keys
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file with column key ({one_line(error)})") from None


def batches_of(keys: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Cut a column into arrays of at most BATCH keys."""
    for chunk in keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]:
        for start in range(0, len(chunk), BATCH):
            yield chunk.slice(start, BATCH)


def prefixed(prefix: str, keys: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(prefix, keys.type), keys, pa.scalar("", keys.type)) if prefix else keys


def key_hashes(keys: Iterable[pa.Array]) -> NDArray[np.int64]:
    """Return 64 bits of each key, comparable within this process."""
    parts = [np.fromiter(map(hash, some.to_pylist()), np.int64, len(some)) for some in keys]
    return np.concatenate([np.empty(0, np.int64), *parts])


def repeated_key(hashes: NDArray[np.int64], keys: Iterable[pa.Array]) -> str | None:
    """Return a key that occurs more than once, None if there is none.

    `hashes` are those of `keys`, which are read only if two hashes are equal. Memory: 8 bytes a key.
    """
    ordered = np.sort(hashes)
    # 64-bit hash collisions are rare, so confirm candidates on the full keys; a thousand are enough to find a true one.
    met = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])[:_MOST_MET]
    if not len(met):
        return None
    seen: set[str] = set()
    for some in keys:
        for key in some.filter(pa.array(np.isin(key_hashes([some]), met))).to_pylist():
            if key in seen:
                return key
            seen.add(key)
    return None


def find_keys(wanted: Iterable[pa.Array], keys: Iterable[pa.Array]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Look up keys in a stream of keys.

    Keys are compared by 128 bits of BLAKE2b; the probability of a collision among 42 million is 1e-23. Memory: 44 bytes
    for each wanted key, and a batch.

    Returns:
        for each wanted key its position in `keys`, -1 if it is not there, and its number of occurrences. Both (n,).
    """
    high, low = _fingerprints(wanted)
    order = np.argsort(high)
    high, low = high[order], low[order]
    places, times = np.full(len(order), -1, np.int64), np.zeros(len(order), np.int32)
    done = 0
    for some in keys:
        their_high, their_low = _fingerprints([some])
        by_high = np.argsort(their_high)  # the search then passes through memory once
        first = np.searchsorted(high, their_high[by_high])
        counts = np.searchsorted(high, their_high[by_high], side="right") - first
        rows = np.repeat(by_high, counts)
        spots = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(rows))
        same = low[spots] == their_low[rows]
        rows, spots = rows[same], order[spots[same]]
        places[spots] = done + rows
        np.add.at(times, spots, 1)
        done += len(some)
    return places, times


def _fingerprints(keys: Iterable[pa.Array]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the halves of 128-bit hashes, (n,) each."""
    parts = [
        b"".join([hashlib.blake2b(key.encode(), digest_size=16).digest() for key in some.to_pylist()])
        for column in keys
        for some in batches_of(column)
    ]
    halves = np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)
    return halves[:, 0].copy(), halves[:, 1].copy()
