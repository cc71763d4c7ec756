"""Samples of shards (an image and a label with one key), their index, and faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rayface.credentials import mask
from rayface.storage import printable
from rayface.values import visible

NOT_A_TAR = "not a tar"  # kind of fault


class Sample(NamedTuple):  # not a dataclass: made thousands of times a second
    """One image: `label` as stored in its shard, `offset` and `num_bytes` of its members with headers and padding."""

    key: str
    label: int
    jpeg: bytes
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A corrupt or invalid part of a shard or of a source.

    Attributes:
        shard: path of the file or source.
        member: name in it, None for the whole.
        offset: byte in the file; None for a whole file, or a member without a known place.
        num_lost: samples known to be lost; 0 if only a rule is broken.
        kind: for summaries. Of samples: header, truncated, missing member, label, duplicate key, special file,
            unreadable (an image that cannot be decoded), index, name. Of whole shards: not a tar, not read, labels,
            size, count, digest, unlisted. Of what a conversion left out, see docs/data.md: unreadable, other file,
            hidden, link, alias, special file, folder, outside, identity.
    """

    shard: str
    member: str | None
    offset: int | None = None
    reason: str
    num_lost: int = 1
    kind: str = "unreadable"

    def __str__(self) -> str:
        place = None if self.offset is None else f"at byte {self.offset}"
        where = " ".join(part for part in (self.member, place) if part)
        line = printable(mask(": ".join(part for part in (self.shard, where, self.reason) if part)))
        return visible(line).replace("\n", "\\n")  # names are of strangers, who could add lines to faults.log


@dataclass
class SampleIndex:
    """Position of every sample: numpy columns of length N, 24 bytes a sample, 20 if both labels are one array.

    Columns are immutable; one may be replaced by an equal one elsewhere in memory.

    Attributes:
        shard: int32, number of the shard.
        offset: int64, byte of the first tar header.
        num_bytes: int32, with headers and padding.
        label: int32, in the joint label space.
        source_label: int32, as stored in the shard.
    """

    shard: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    label: np.ndarray
    source_label: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def select(self, ids: np.ndarray | slice) -> SampleIndex:
        """Return the samples `ids` (positions, a boolean mask or a slice), in that order."""
        label = self.label[ids]
        source_label = label if self.source_label is self.label else self.source_label[ids]
        return SampleIndex(self.shard[ids], self.offset[ids], self.num_bytes[ids], label, source_label)


class ShardRows:
    """Rows of every shard in an index column `shard` (N,): a slice, or an array if the column is not sorted.

    Takes one pass over the column. Memory: 8 bytes a sample if it is not sorted.
    """

    def __init__(self, shard: np.ndarray, num_shards: int) -> None:
        self._order: np.ndarray | None = None
        if (shard[1:] < shard[:-1]).any():
            self._order = np.argsort(shard, kind="stable")
            shard = shard[self._order]
        numbers = np.arange(num_shards + 1, dtype=shard.dtype)  # of another type, it would convert the column
        self._bounds: list[int] = np.searchsorted(shard, numbers).tolist()

    def __getitem__(self, number: int) -> slice | np.ndarray:
        rows = slice(self._bounds[number], self._bounds[number + 1])
        return rows if self._order is None else self._order[rows]

    def positions(self, number: int) -> np.ndarray:
        """Return the same as an array (n,) int64."""
        rows = self[number]
        return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
