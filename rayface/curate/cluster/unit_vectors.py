"""Unit vectors of all embeddings as files that tasks memory-map, and the tasks that search their neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.cluster.neighbours import Neighbours, search
from rayface.curate.cosines import unit_blocks
from rayface.curate.partitions import key_hashes, refuse_duplicates, row_blocks
from rayface.curate.sorted_runs import Range
from rayface.curate.work_files import WorkPath, local_paths
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.rows import read_labels, read_rows
from rayface.ray_tasks import map_unordered

_SIZES = np.dtype(np.float32).itemsize


@dataclass(frozen=True, kw_only=True)
class UnitVectors:
    """N unit vectors in parts, in the order of the embeddings.

    Attributes:
        folder: of the parts.
        starts: first row of each part, and N.
    """

    folder: WorkPath
    starts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return self.starts[-1]

    @property
    def num_parts(self) -> int:
        return len(self.starts) - 1

    def path(self, part: int) -> WorkPath:
        return self.folder / f"units-{part:06d}.npy"

    def part(self, part: int) -> Floats:
        """Return a part, memory-mapped."""
        found: Floats = np.load(self.path(part).local(), mmap_mode="r", allow_pickle=False)
        return found

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yield the parts, each with its first row."""
        paths = local_paths([self.path(part) for part in range(self.num_parts)])
        for start, path in zip(self.starts, paths, strict=False):
            yield start, np.load(path, mmap_mode="r", allow_pickle=False)

    def rows(self, rows: Ints) -> NDArray[np.float32]:
        """Return the vectors (n, D) of some rows."""
        found = np.empty((len(rows), self.part(0).shape[1]), np.float32)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        parts = np.unique(owner).tolist()
        for part, path in zip(parts, local_paths([self.path(part) for part in parts]), strict=True):
            some = np.flatnonzero(owner == part)
            found[some] = np.load(path, mmap_mode="r", allow_pickle=False)[rows[some] - self.starts[part]]
        return found

    def neighbours_path(self, part: int) -> WorkPath:
        return self.folder / f"neighbours-{part:06d}.npz"

    def read(self) -> NDArray[np.float32]:
        """Return all vectors (N, D)."""
        return np.concatenate([np.asarray(part, np.float32) for _, part in self.blocks()])


def write_unit_vectors(source: Embeddings, folder: WorkPath, block_bytes: int) -> UnitVectors:
    """Write the unit vectors of all embeddings; existing parts are reused.

    Raises:
        DataError: a bad embedding; one line that names its key.
    """
    blocks = row_blocks(source, max(1, block_bytes // (_SIZES * source.size)))
    counts = [sum(stop - start for _, start, stop in ranges) for ranges in blocks]
    vectors = UnitVectors(folder=folder, starts=tuple(accumulate(counts, initial=0)))

    def write(numbered: tuple[int, list[Range]]) -> None:
        path = vectors.path(numbered[0])
        if not path.exists():
            rows = np.concatenate([read_rows(*each).embeddings for each in numbered[1]])
            found = np.concatenate(list(unit_blocks(rows))).astype(np.float32)
            with path.writing() as stream:
                np.save(stream, found, allow_pickle=False)

    for _ in map_unordered(write, list(enumerate(blocks)), "normalise embeddings", rows=vectors.num_rows):
        pass
    return vectors


def read_keys_and_labels(source: Embeddings) -> tuple[pa.ChunkedArray, Ints]:
    """Return keys and labels (N,) in order.

    Raises:
        DataError: a key occurs twice, or a key or label is missing; one line.
    """
    batches = [batch for file in source.files for batch in read_labels(file)]
    refuse_duplicates(source.files, np.concatenate([key_hashes(keys) for keys, _ in batches]))
    return pa.chunked_array([keys for keys, _ in batches], pa.string()), np.concatenate([own for _, own in batches])


def find_neighbours(vectors: UnitVectors, k: int) -> Neighbours:
    """Search the k nearest neighbours of all vectors exactly, a task per part; existing parts are reused.

    Memory, on the driver: 8 * k bytes per image.
    """
    k = max(1, min(k, vectors.num_rows - 1))

    def find(part: int) -> None:
        if not vectors.neighbours_path(part).exists():
            faiss.omp_set_num_threads(1)
            own = np.arange(vectors.starts[part], vectors.starts[part + 1])
            write_neighbours(vectors, part, search(vectors.part(part), own, vectors.blocks(), k))

    for _ in map_unordered(find, list(range(vectors.num_parts)), "find neighbours", rows=vectors.num_rows):
        pass
    return read_neighbours(vectors)


def write_neighbours(vectors: UnitVectors, part: int, found: Neighbours) -> None:
    with vectors.neighbours_path(part).writing() as stream:
        np.savez(stream, rows=found.rows, cosines=found.cosines)


def read_neighbours(vectors: UnitVectors) -> Neighbours:
    """Return the neighbours of all parts, rows as int32 where they fit."""
    paths = local_paths([vectors.neighbours_path(part) for part in range(vectors.num_parts)])
    with np.load(paths[0], allow_pickle=False) as first:
        shape = (vectors.num_rows, first["rows"].shape[1])
    kind = np.int32 if vectors.num_rows < 2**31 else np.int64
    found = Neighbours(rows=np.empty(shape, kind), cosines=np.empty(shape, np.float32))
    for start, stop, path in zip(vectors.starts, vectors.starts[1:], paths, strict=False):
        with np.load(path, allow_pickle=False) as part:
            found.rows[start:stop], found.cosines[start:stop] = part["rows"], part["cosines"]
    return found


@dataclass(frozen=True, kw_only=True)
class _Confidences:
    part: int
    values: NDArray[np.float32]


def confidences(vectors: UnitVectors, clusters: Ints) -> NDArray[np.float32]:
    """Return the silhouette (N,) of each image, from -1 to 1, by mean cosines; 0 for noise.

    With a, the mean cosine distance to the other images of its cluster, and b, that to the nearest other cluster:
    (b - a) / max(a, b).
    """
    sums, sizes = cluster_sums(vectors, clusters)
    path = vectors.folder / f"centers-{hashlib.sha256(clusters.tobytes()).hexdigest()[:16]}.npy"
    with path.writing() as stream:
        np.save(stream, sums / sizes[:, None].astype(np.float32), allow_pickle=False)

    def measure(part: int) -> _Confidences:
        faiss.omp_set_num_threads(1)
        own = clusters[vectors.starts[part] : vectors.starts[part + 1]]
        return _Confidences(part=part, values=silhouettes(vectors.part(part), own, np.load(path.local()), sizes))

    values = np.zeros(vectors.num_rows, np.float32)
    parts = list(range(vectors.num_parts)) if len(sizes) else []
    for result in map_unordered(measure, parts, "measure confidence", rows=vectors.num_rows):
        values[vectors.starts[result.part] : vectors.starts[result.part + 1]] = result.values
    return values


def cluster_sums(vectors: UnitVectors, clusters: Ints) -> tuple[NDArray[np.float32], Ints]:
    """Return the sums (C, D) of the vectors of each cluster, and the number (C,) of its images."""
    sizes = np.bincount(clusters[clusters >= 0])
    sums = np.zeros((len(sizes), vectors.part(0).shape[1]), np.float32)
    for start, part in vectors.blocks():
        own = clusters[start : start + len(part)]
        np.add.at(sums, own[own >= 0], part[own >= 0])
    return sums, sizes


def silhouettes(part: Floats, own: Ints, means: NDArray[np.float32], sizes: Ints) -> NDArray[np.float32]:
    """Return the silhouettes (n,) of unit vectors (n, D) in clusters `own` (n,) with means (C, D) and sizes (C,)."""
    values = np.zeros(len(part), np.float32)
    rows = np.flatnonzero(own >= 0)
    queries, mine = np.ascontiguousarray(part[rows], np.float32), own[rows]
    count = sizes[mine]
    inside = (np.einsum("nd,nd->n", queries, means[mine]) * count - 1) / np.maximum(1, count - 1)
    cosines, places = faiss.knn(queries, means, min(2, len(means)), metric=faiss.METRIC_INNER_PRODUCT)
    outside = np.where(places == mine[:, None], -1, cosines).max(axis=1)
    a, b = 1 - inside, 1 - outside
    values[rows] = np.where(count > 1, (b - a) / np.maximum(np.maximum(a, b), 1e-6), 0)
    return values
