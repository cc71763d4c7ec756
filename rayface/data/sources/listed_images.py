"""List of all images of a source, with part, row and label of each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.shards.scan import parallel_map
from rayface.data.sources.base import DatasetSource
from rayface.data.sources.faults import FaultLog
from rayface.progress import phase
from rayface.storage import DataError

_PIECE = 32  # images of one part that one thread reads at once


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Images of one part that are read together: their positions among the requested ones, and their listing."""

    positions: NDArray[np.int64]
    part: int
    images: pa.Table


@dataclass(frozen=True, kw_only=True)
class ListedImages:
    """The images that are converted. Memory: 12 bytes an image beside the source's listing.

    Attributes:
        tables: the source's listing by part.
        rows: (n,) int64, row of each image in all tables together, rising.
        labels: (n,) int32, without holes.
        identities: names by label, or the labels that the source gives.
        image_size: (height, width) if the first images of all parts have one size.
    """

    tables: Sequence[pa.Table]
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    identities: Sequence[str | int]
    image_size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.rows)

    def pieces(self, numbers: NDArray[np.int64]) -> Iterator[Piece]:
        """Cut the images `numbers`, (m,) in any order, into pieces of the parts that they are in."""
        starts = np.cumsum([0, *map(len, self.tables)])
        rows = self.rows[numbers]
        order = np.argsort(rows, kind="stable")
        parts = np.searchsorted(starts, rows[order], "right") - 1
        edges = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1], True]).tolist()
        for start, stop in itertools.pairwise(edges):
            part = int(parts[start])
            for first in range(start, stop, _PIECE):
                positions = order[first : min(first + _PIECE, stop)]
                images = self.tables[part].take(rows[positions] - starts[part])
                yield Piece(positions=positions, part=part, images=images)

    def keys(self) -> list[pa.ChunkedArray]:
        """Return the column `key` of every part, of the images that are converted."""
        starts = np.cumsum([0, *map(len, self.tables)])
        bounds = np.searchsorted(self.rows, starts).tolist()
        return [
            table["key"].take(self.rows[first:last] - start)
            for table, start, (first, last) in zip(self.tables, starts, itertools.pairwise(bounds), strict=False)
        ]

    def without_identities(self, labels: Sequence[int]) -> ListedImages:
        """Remove all images of some identities, and renumber the others."""
        is_kept = np.ones(len(self.identities), bool)
        is_kept[list(labels)] = False
        new_label = np.cumsum(is_kept, dtype=np.int32) - 1
        kept = is_kept[self.labels]
        return dataclasses.replace(
            self,
            rows=self.rows[kept],
            labels=new_label[self.labels[kept]],
            identities=[name for name, keep in zip(self.identities, is_kept, strict=True) if keep],
        )


def list_source(source: DatasetSource, faults: FaultLog) -> ListedImages:
    """List all parts; what they skip is added to `faults`.

    Named identities are numbered in order of appearance, identities with labels in the order of the labels.

    Raises:
        DataError: no image.
    """
    parts = range(len(source.parts()))
    listings = []
    with phase("list images", parts=len(parts)) as current:
        for listing in parallel_map(source.list_images, parts, processes=source.lists_in_processes):
            listings.append(listing)
            if listing.faults:
                faults.update(listing.faults)
            current.advance()
        current.rows = sum(len(listing.images) for listing in listings)
    tables = [listing.images.combine_chunks() for listing in listings]
    if not any(map(len, tables)):
        first = f"; the first fault: {faults.first()}" if faults.first() else ""
        raise DataError(f"{source.root}: no images in it: {source.kind} needs {source.expects}{first}")
    identities, labels = _number_identities([table["identity"] for table in tables if len(table)])
    sizes = {listing.image_size for listing in listings if listing.image_size}
    return ListedImages(
        tables=tables,
        rows=np.arange(len(labels)),
        labels=labels.astype(np.int32),
        identities=identities,
        image_size=sizes.pop() if len(sizes) == 1 else None,
    )


def _number_identities(given: Sequence[pa.ChunkedArray]) -> tuple[Sequence[str | int], NDArray[np.int64]]:
    """Return the identities and the new label of each image, from the column `identity` of every part."""
    if all(pa.types.is_integer(column.type) for column in given):
        old, labels = np.unique(np.concatenate([column.to_numpy() for column in given]), return_inverse=True)
        return old.tolist(), labels
    label_of: dict[str, int] = {}
    found = []
    for column in given:
        names = column.combine_chunks().dictionary_encode()
        labels = np.array([label_of.setdefault(name, len(label_of)) for name in names.dictionary.to_pylist()])
        found.append(labels[names.indices.to_numpy()])
    return list(label_of), np.concatenate(found)
