"""Which centers are near: exactly for few, approximately for many, by faiss."""

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.curate.identities import Ints

EXACT = 20_000  # centers; more are searched in cells
_PROBED = 32  # cells, of 4 * sqrt(centers)
_BLOCK = 1024  # queries
_MAX_PAIRS = 1_000_000

Floats32 = NDArray[np.float32]


class CenterIndex:
    """Unit centers (I, D), searched by cosine.

    Beyond EXACT centers, those in the 32 nearest of 4 * sqrt(I) cells of a query are compared with it; the same cells
    in every run. Memory: another 4 * I * D bytes.
    """

    def __init__(self, centers: Floats32, *, exact: int = EXACT) -> None:
        count, size = centers.shape
        self._centers = centers
        if count <= exact:
            self._index: faiss.Index = faiss.IndexFlatIP(size)
        else:
            cells = int(4 * count**0.5)
            self._coarse = faiss.IndexFlatIP(size)  # faiss does not keep it alive
            index = faiss.IndexIVFFlat(self._coarse, size, cells, faiss.METRIC_INNER_PRODUCT)
            index.cp.spherical = True
            index.cp.seed = 1
            index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
            index.nprobe = _PROBED
            index.train(centers)
            self._index = index
        self._index.add(centers)

    def above(self, queries: Floats32, threshold: float) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Return pairs (query, center) of a higher cosine than the threshold, and these cosines.

        Raises:
            ValueError: more than a million pairs.
        """
        found: list[tuple[Ints, Ints, NDArray[np.float64]]] = []
        total = 0
        for first in range(0, len(queries), _BLOCK):
            block = np.ascontiguousarray(queries[first : first + _BLOCK])
            # a little more than asked for: what is above is decided in float64
            ends, _, ids = self._index.range_search(block, threshold - 1e-5)
            counts = ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)
            asked = np.repeat(np.arange(len(block)), counts)
            cosines = np.concatenate(
                [
                    np.einsum("kd,kd->k", block[asked[k]].astype(np.float64), self._centers[ids[k]].astype(np.float64))
                    for k in (slice(k, k + _BLOCK) for k in range(0, len(asked), _BLOCK))
                ]
                or [np.zeros(0)]
            )
            sure = cosines > threshold
            order = np.lexsort((ids[sure], asked[sure]))
            found.append((asked[sure][order] + first, ids[sure][order], cosines[sure][order]))
            total += len(order)
            if total > _MAX_PAIRS:
                raise ValueError(
                    f"cosine {threshold}: more than {_MAX_PAIRS:,} pairs of identities are above it; raise it"
                )
        left, right, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return left, right, cosines

    def pairs_above(self, threshold: float) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Return pairs of centers of a higher cosine than the threshold, each once, the lower first."""
        left, right, cosines = self.above(self._centers, threshold)
        low, high = np.minimum(left, right), np.maximum(left, right)
        both, at = np.unique(np.stack([low, high], axis=1)[low != high], axis=0, return_index=True)
        return both[:, 0], both[:, 1], cosines[low != high][at]

    def nearest(self, queries: Floats32, count: int) -> Ints:
        """Return the nearest centers of each query, (q, count), -1 where there are fewer."""
        found: Ints = self._index.search(np.ascontiguousarray(queries), count)[1]
        return found
