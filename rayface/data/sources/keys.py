"""Keys of converted images: unique in the dataset, and valid for all WebDataset readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_UNSAFE = re.compile(r"[\x00-\x1f.]")


def clean_key(key: str) -> str:
    """Return a relative path without dots, which end keys in WebDataset; a backslash separates folders as well."""
    parts = [part for part in re.split(r"[/\\]", key) if part not in ("", ".", "..")]
    return "/".join(_UNSAFE.sub("_", part) for part in parts) or "_"


def flat_key(name: str) -> str:
    """Return a key without folders: letters, digits and -_+=@ stay."""
    return "".join(c if c.isalnum() or c in "-_+=@" else "_" for c in name)


def keys_with_part(parts: Sequence[str], keys: Sequence[pa.ChunkedArray]) -> Iterable[str]:
    """Return cleaned keys in the simplest of three forms that makes all differ: KEY, PART/KEY, PART/KEY-NUMBER.

    Memory: 8 bytes a key.
    """
    num_keys = sum(map(len, keys))
    for with_part in (False, True):
        hashes = np.fromiter(map(hash, _forms(parts, keys, with_part)), np.int64, num_keys)
        hashes.sort()
        if not (hashes[1:] == hashes[:-1]).any():
            return _forms(parts, keys, with_part)
    return (f"{key}-{number}" for number, key in enumerate(_forms(parts, keys, True)))


def _forms(parts: Sequence[str], keys: Sequence[pa.ChunkedArray], with_part: bool) -> Iterator[str]:
    for part, own in zip(parts, keys, strict=True):
        prefix = f"{clean_key(part)}/" if with_part else ""
        for chunk in own.chunks:
            for key in chunk.to_pylist():
                yield f"{prefix}{clean_key(key)}"


def numbered_keys(keys: Iterable[str]) -> Iterator[str]:
    """Yield the keys; of equal ones, the later ones get the first free of -2, -3 and so on.

    `keys` is iterated twice. Memory: 8 bytes a key, and those that occur more than once.
    """
    hashes = np.fromiter(map(hash, keys), np.int64)
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())

    def occurs(key: str) -> bool:
        at = int(np.searchsorted(hashes, hash(key)))
        return at < len(hashes) and bool(hashes[at] == hash(key))

    seen: set[str] = set()
    for base in keys:
        key, number = base, 1
        if repeated and hash(base) in repeated:
            while key in seen or (number > 1 and occurs(key)):
                number += 1
                key = f"{base}-{number}"
            seen.add(key)
        yield key


@dataclass(frozen=True)
class ColumnValues(Iterable[str]):
    """The values of columns, one after the other; may be iterated several times."""

    columns: Sequence[pa.ChunkedArray]

    def __iter__(self) -> Iterator[str]:
        return (value for column in self.columns for chunk in column.chunks for value in chunk.to_pylist())
