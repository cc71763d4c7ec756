"""Approximate index of the means of components, whose search takes about the same time for any number of them.

Up to MOST_IN_GRAPH entries it is a graph (HNSW) of the vectors themselves. Its search and its insertions slow down as
it outgrows the cache, and it finds less and less. Larger indexes are inverted lists, as many as grow with the
components: a search probes a fixed number of lists of bounded length, and compares sketches of signs, of which one has
up to 64 bytes whatever the dimension. When the entries have doubled, the lists are made anew from the current means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.ogmc_state import NEIGHBOURS, enlarged

FOUND = 2 * NEIGHBOURS  # components that a search returns
MOST_IN_GRAPH = 16_384
_PROBES = 64  # lists that a search reads
_LIST = 128  # entries of a list when it is made; twice as many before lists are made anew
_BITS = (256, 512)  # least and most bits of a sketch
_BLOCK = 4096
_SEED = 0

Vectors = NDArray[np.float32]


class _Lists(NamedTuple):
    """Inverted lists: `pivots` finds the lists of a vector, `sketches` holds the entries."""

    pivots: faiss.IndexHNSWFlat
    sketches: Any  # faiss.IndexBinaryIVF
    directions: Vectors  # (D, bits), random
    center: Vectors  # (D,) mean of the pivots, subtracted before signs are taken
    num_made_of: int  # entries when the lists were made


class ComponentIndex:
    """Components by the mean that each had when it was last added; one that was added again has several entries."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries, self._count = np.empty(0, np.int64), 0  # component of each entry, and their number
        self._graph: Any = _new_graph(size)
        self._lists: _Lists | None = None

    def search(self, vectors: Vectors) -> Ints:
        """Return up to FOUND components (n, A) near each of the unit vectors (n, D); -1: none."""
        if not self._count:
            return np.empty((len(vectors), 0), np.int64)
        if self._graph is not None:
            _, found = self._graph.search(vectors, min(FOUND, self._count))
        else:
            found = self._probed(vectors)
        return np.where(found < 0, -1, self._entries[found])

    def add(self, components: Ints, means: Vectors) -> None:
        """Add components with their unit means (n, D)."""
        with _one_thread():
            if self._graph is not None:
                self._graph.add(means)
            else:
                self._append(means, self._count)
        start, self._count = self._count, self._count + len(components)
        self._entries = enlarged(self._entries, self._count)
        self._entries[start : self._count] = components

    @property
    def is_outgrown(self) -> bool:
        """Whether `remake` should be called: the graph is too large, or the entries have doubled."""
        return self._count >= (MOST_IN_GRAPH if self._lists is None else 2 * self._lists.num_made_of)

    def remake(self, components: Ints, means: Vectors) -> None:
        """Make inverted lists of these components alone, with their unit means (n, D)."""
        count = max(1, len(means) // _LIST)
        chosen = np.sort(np.random.default_rng(_SEED).permutation(len(means))[:count])
        directions = _directions(self.size)
        bits = directions.shape[1]
        with _one_thread():
            pivots = _new_graph(self.size)
            pivots.add(means[chosen])
            quantizer = faiss.IndexBinaryFlat(bits)  # never searched: `pivots` is, by exact cosines
            quantizer.add(np.zeros((count, bits // 8), np.uint8))
            sketches = faiss.IndexBinaryIVF(quantizer, bits, count)
            sketches.is_trained = True
            self._graph, self._entries, self._count = None, components.copy(), len(components)
            self._lists = _Lists(_tuned(pivots), sketches, directions, means[chosen].mean(axis=0), len(means))
            for start in range(0, len(means), _BLOCK):
                self._append(means[start : start + _BLOCK], start)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays by name, for `restored`."""
        found: dict[str, NDArray[Any]] = {"entries": self._entries[: self._count]}
        if self._graph is not None:
            return found | {"index": faiss.serialize_index(self._graph)}
        assert self._lists is not None
        return found | {
            "pivots": faiss.serialize_index(self._lists.pivots),
            "sketches": faiss.serialize_index_binary(self._lists.sketches),
            "center": self._lists.center,
            "num_made_of": np.array(self._lists.num_made_of),
        }

    @classmethod
    def restored(cls, size: int, arrays: Mapping[str, NDArray[Any]]) -> ComponentIndex:
        """Return the index of `arrays`."""
        own = cls(size)
        own._entries, own._count = arrays["entries"], len(arrays["entries"])
        if "index" in arrays:
            own._graph = faiss.deserialize_index(arrays["index"])
            for _ in range(own._graph.ntotal):  # the file does not hold how far its random levels had come
                own._graph.hnsw.random_level()
        else:
            own._graph = None
            pivots: Any = faiss.deserialize_index(arrays["pivots"])
            sketches: Any = faiss.deserialize_index_binary(arrays["sketches"])
            own._lists = _Lists(
                _tuned(pivots), sketches, _directions(size), arrays["center"], int(arrays["num_made_of"])
            )
        return own

    def _append(self, means: Vectors, first: int) -> None:
        """Put means into the lists, as the entries from `first`."""
        assert self._lists is not None
        _, place = self._lists.pivots.search(means, 1)
        numbers = np.arange(first, first + len(means))
        codes, place = self._sketched(means), np.ascontiguousarray(place[:, 0])
        pointers = [faiss.swig_ptr(each) for each in (codes, numbers, place)]
        self._lists.sketches.add_core(len(means), *pointers)

    def _probed(self, vectors: Vectors) -> Ints:
        assert self._lists is not None
        sketches = self._lists.sketches
        sketches.nprobe = min(_PROBES, sketches.nlist)
        _, places = self._lists.pivots.search(vectors, sketches.nprobe)
        nothing = np.zeros(places.shape, np.int32)
        found: Ints = sketches.search_preassigned(self._sketched(vectors), FOUND, places, nothing)[1]
        return found

    def _sketched(self, vectors: Vectors) -> NDArray[np.uint8]:
        """Return the signs (n, bits / 8) of random projections: the more agree, the higher the cosine."""
        assert self._lists is not None
        return np.packbits((vectors - self._lists.center) @ self._lists.directions > 0, axis=1)


def _directions(size: int) -> Vectors:
    bits = min(_BITS[1], max(_BITS[0], (size + 7) // 8 * 8))
    return np.random.default_rng(_SEED).standard_normal((size, bits), np.float32)


def _new_graph(size: int) -> faiss.IndexHNSWFlat:
    graph = faiss.IndexHNSWFlat(size, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = FOUND
    return graph


def _tuned(pivots: faiss.IndexHNSWFlat) -> faiss.IndexHNSWFlat:
    pivots.hnsw.efSearch = _PROBES
    return pivots


@contextmanager
def _one_thread() -> Iterator[None]:
    """Insertions by several threads differ from run to run."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
