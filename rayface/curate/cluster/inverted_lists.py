"""Approximate nearest neighbours of many unit vectors: tasks search the lists nearest to each vector, not all vectors.

Every vector is in the list of its nearest center, and a query compares itself with the vectors of the lists whose
centers are nearest to it. About 4 * sqrt(N) lists, so the products per image are 4 * sqrt(N) + probes * sqrt(N) / 4
instead of N. Centers are by k-means on a sample. Every task writes a file, from which an interrupted job resumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.cluster.nearest_kernel import insert_nearest
from rayface.curate.cluster.neighbours import Neighbours, search
from rayface.curate.cluster.unit_vectors import UnitVectors, read_neighbours, write_neighbours
from rayface.curate.work_files import WorkPath, local_paths
from rayface.ray_tasks import map_unordered

_LISTS = 4.0  # times the square root of the images
_PER_LIST = 16  # images of the k-means sample for each list
_ROUNDS = 4
_SAMPLE = 128  # images whose neighbours are also searched exactly, to measure the recall


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Vectors of the lists from `first` to `last`, the rows from `start` to `stop` of the order by list."""

    number: int
    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """All vectors by list: image (N,) at each place, and the first place (C + 1,) of each list, and N."""

    folder: WorkPath
    order: Ints
    starts: Ints
    blocks: tuple[_Block, ...]

    def path(self, block: _Block) -> WorkPath:
        return self.folder / f"list-{block.number:06d}.npy"


def find_listed_neighbours(vectors: UnitVectors, k: int, probes: int) -> tuple[Neighbours, float]:
    """Search the k nearest neighbours of all vectors in `probes` lists each; existing parts are reused.

    Memory: a task holds two parts; the driver 8 * k + 16 bytes per image.

    Returns:
        The neighbours, and their recall: the share of the exact neighbours of some images that is among them.
    """
    k = max(1, min(k, vectors.num_rows - 1))
    centers = _centers(vectors)
    probes = min(probes, len(centers))
    _probe(vectors, centers, probes)
    lists = _sorted_by_list(vectors, len(centers))
    _gather(vectors, lists)
    parts = list(range(vectors.num_parts))

    def find(part: int) -> None:
        if not vectors.neighbours_path(part).exists():
            faiss.omp_set_num_threads(1)
            write_neighbours(vectors, part, _searched(vectors, part, lists, k))

    for _ in map_unordered(find, parts, "find neighbours", rows=vectors.num_rows):
        pass
    found = read_neighbours(vectors)
    return found, _recall(vectors, found, k)


def _centers(vectors: UnitVectors) -> NDArray[np.float32]:
    """Return the centers of the lists (C, D), of length 1, by k-means on images at equal distances."""
    path = vectors.folder / "centers-of-lists.npy"
    size, count = vectors.part(0).shape[1], max(1, min(int(_LISTS * np.sqrt(vectors.num_rows)), vectors.num_rows))
    rows = np.unique(np.linspace(0, vectors.num_rows - 1, min(count * _PER_LIST, vectors.num_rows)).astype(int))

    def train(path: WorkPath) -> None:
        if not path.exists():
            faiss.omp_set_num_threads(1)
            points = {"min_points_per_centroid": 1, "max_points_per_centroid": _PER_LIST + 1}
            kmeans: Any = faiss.Kmeans(size, count, niter=_ROUNDS, seed=0, spherical=True, **points)
            kmeans.train(vectors.rows(rows))
            with path.writing() as stream:
                np.save(stream, kmeans.centroids, allow_pickle=False)

    for _ in map_unordered(train, [path], "train lists", rows=len(rows)):
        pass
    found: NDArray[np.float32] = np.load(path.local(), allow_pickle=False)
    return found


def _probe(vectors: UnitVectors, centers: NDArray[np.float32], probes: int) -> None:
    """Write the nearest lists (n, probes) of the images of each part, nearest first."""

    def find(part: int) -> None:
        path = _probes_path(vectors, part)
        if not path.exists():
            faiss.omp_set_num_threads(1)
            queries = np.ascontiguousarray(vectors.part(part), np.float32)
            _, places = faiss.knn(queries, centers, probes, metric=faiss.METRIC_INNER_PRODUCT)
            with path.writing() as stream:
                np.save(stream, places.astype(np.int32), allow_pickle=False)

    for _ in map_unordered(find, list(range(vectors.num_parts)), "assign lists", rows=vectors.num_rows):
        pass


def _probes_path(vectors: UnitVectors, part: int) -> WorkPath:
    return vectors.folder / f"lists-{part:06d}.npy"


def _sorted_by_list(vectors: UnitVectors, count: int) -> _Lists:
    """Return all images by list, in blocks of whole lists of about a part's size."""
    paths = local_paths([_probes_path(vectors, part) for part in range(vectors.num_parts)])
    own = np.concatenate([np.load(path)[:, 0] for path in paths])
    order = np.argsort(own, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(own, minlength=count))]
    size = max(np.diff(vectors.starts).tolist())
    cuts = [0]
    for number in range(1, count + 1):
        if starts[number] - starts[cuts[-1]] > size and cuts[-1] < number - 1:
            cuts.append(number - 1)
    cuts.append(count)
    blocks = tuple(
        _Block(number=number, first=first, last=last, start=int(starts[first]), stop=int(starts[last]))
        for number, (first, last) in enumerate(pairwise(cuts))
    )
    return _Lists(folder=vectors.folder, order=order, starts=starts, blocks=blocks)


def _gather(vectors: UnitVectors, lists: _Lists) -> None:
    """Write the vectors of each block, so that tasks read them in order."""

    def write(block: _Block) -> None:
        if not lists.path(block).exists():
            with lists.path(block).writing() as stream:
                np.save(stream, vectors.rows(lists.order[block.start : block.stop]), allow_pickle=False)

    for _ in map_unordered(write, lists.blocks, "sort by list", rows=vectors.num_rows):
        pass


def _searched(vectors: UnitVectors, part: int, lists: _Lists, k: int) -> Neighbours:
    """Return the neighbours of a part."""
    queries = np.ascontiguousarray(vectors.part(part), np.float32)
    places = np.load(_probes_path(vectors, part).local(), allow_pickle=False)
    asked = np.argsort(places, axis=None, kind="stable")  # pairs of an image and a list, by list
    stops = np.searchsorted(places.ravel()[asked], np.arange(len(lists.starts)))
    asked //= places.shape[1]
    found = Neighbours(
        rows=np.full((len(queries), k), -1), cosines=np.full((len(queries), k), np.float32(-2), np.float32)
    )
    paths = local_paths([lists.path(block) for block in lists.blocks])
    for block, path in zip(lists.blocks, paths, strict=True):
        members: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
        for number in range(block.first, block.last):
            some = asked[stops[number] : stops[number + 1]]
            start, stop = lists.starts[number : number + 2]
            if len(some) and stop > start:
                own = np.ascontiguousarray(members[start - block.start : stop - block.start], np.float32)
                _compare(queries, some, own, lists.order[start:stop], vectors.starts[part], found)
    return found


def _compare(
    queries: NDArray[np.float32], some: Ints, members: NDArray[np.float32], rows: Ints, first: int, found: Neighbours
) -> None:
    """Compare some queries with the vectors of a list, in one product of matrices, and insert the nearest."""
    k = min(found.rows.shape[1] + 1, len(members))  # one more: the image itself may be among them
    values, nearest = faiss.knn(queries[some], members, k, metric=faiss.METRIC_INNER_PRODUCT)
    insert_nearest(found.rows, found.cosines, some, rows, nearest, values, first)


def _recall(vectors: UnitVectors, found: Neighbours, k: int) -> float:
    some = np.unique(np.linspace(0, vectors.num_rows - 1, _SAMPLE).astype(int))
    exact = search(vectors.rows(some), some, vectors.blocks(), k).rows
    same = (found.rows[some][:, :, None] == exact[:, None]) & (exact >= 0)[:, None]
    return float(same.sum() / max(1, np.count_nonzero(exact >= 0)))
