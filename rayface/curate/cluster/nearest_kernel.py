"""The nearest of candidates that come list by list, compiled by numba."""

from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.compiled import compiled


@compiled
def insert_nearest(
    rows: NDArray, cosines: Floats, queries: Ints, slots: Ints, candidates: Ints, values: Floats, first: int
) -> None:
    """Insert candidates into the nearest neighbours of queries, in place: by falling cosine, ties by row.

    Args:
        rows, cosines: (N, k), -1 and -2 where there are fewer.
        queries: (n,) places in `rows`; the row of a query is `first` more.
        slots: (m,) rows of what the candidates number.
        candidates, values: (n, c), nearest first.
    """
    k = rows.shape[1]
    for n in range(len(queries)):
        query = queries[n]
        for column in range(candidates.shape[1]):
            row, value = slots[candidates[n, column]], values[n, column]
            if value < cosines[query, k - 1]:
                break  # the others are further
            if row == query + first:
                continue
            place = k
            while place > 0 and (
                cosines[query, place - 1] < value
                or (cosines[query, place - 1] == value and rows[query, place - 1] > row)
            ):
                place -= 1
            for later in range(k - 1, place, -1):
                rows[query, later], cosines[query, later] = rows[query, later - 1], cosines[query, later - 1]
            if place < k:
                rows[query, place], cosines[query, place] = row, value
