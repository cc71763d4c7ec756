"""Findings of cleaning, the decisions to drop or merge, and tables of the findings."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayface.arrays import Bools, Ints
from rayface.curate.clean.pair_search import Pairs

DROPS = ("test", "bytes", "outliers", "conflicts")  # in order: the first that applies is the reason
REASONS = {"test": "in the test set", "bytes": "same bytes", "outliers": "outlier", "conflicts": "conflict"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Findings as rows of N images and indices of I identities.

    Attributes:
        outliers: rows.
        duplicates: pairs of identities, the lower number first.
        conflicts: pairs of rows, the lower first.
        copies: rows, and for each the row that is kept; the cosines are unused.
        overlap: identities, and identities of the test set.
    """

    outliers: Ints
    duplicates: Pairs
    conflicts: Pairs
    copies: Pairs
    overlap: Pairs


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Tables of the findings, worst first.

    Attributes:
        outliers: key, label, cosine (to the mean of its identity).
        duplicates: label, other_label, cosine (of the centers), the lower label first.
        conflicts: key, label, other_key, other_label, cosine; not of identities that are duplicates.
        bytes: key, label, other_key, other_label; the other is the one to stay.
        test: label, test_label, cosine (of the centers).
        num_dropped: images, by their reason.
    """

    outliers: pa.Table
    duplicates: pa.Table
    conflicts: pa.Table
    bytes: pa.Table
    test: pa.Table
    num_dropped: dict[str, int]


def far_from_mean(cosines: NDArray[np.float64], below: float | None) -> Ints:
    """Return the rows with a lower cosine to the mean of their identity."""
    return np.zeros(0, np.int64) if below is None else np.flatnonzero(cosines < below)


def copies_of(digests: NDArray[np.generic], cosines: NDArray[np.float64]) -> Pairs:
    """Return images with equal bytes, each with the one to keep: the nearest to its identity's mean, else the first."""
    _, group = np.unique(digests, return_inverse=True)
    order = np.lexsort((-np.round(cosines, 10), group))  # stable: ties by row
    starts = np.r_[True, group[order][1:] != group[order][:-1]] if len(order) else np.zeros(0, bool)
    stays = order[starts][np.cumsum(starts) - 1]
    again = ~starts
    rows, others = order[again], stays[again]
    by_row = np.argsort(rows)
    return rows[by_row], others[by_row], np.ones(len(rows))


def _less_at_home(pairs: Pairs, cosines: NDArray[np.float64]) -> Ints:
    """Return of each pair the image farther from the mean of its identity, or the later one if they are equal."""
    return np.unique(np.where(cosines[pairs[0]] < cosines[pairs[1]], pairs[0], pairs[1]))


def reasons(found: Found, drop: tuple[str, ...], cosines: NDArray[np.float64], bounds: Ints) -> NDArray[np.int8]:
    """Return for each image the index in DROPS of the reason to drop it, -1 if it is kept."""
    taken = np.zeros(len(bounds) - 1, bool)
    taken[found.overlap[0]] = True
    rows: dict[str, Ints | Bools] = {
        "test": np.repeat(taken, np.diff(bounds)),
        "bytes": found.copies[0],
        "outliers": found.outliers,
        "conflicts": _less_at_home(found.conflicts, cosines),
    }
    why = np.full(len(cosines), -1, np.int8)
    for place in range(len(DROPS) - 1, -1, -1):
        if DROPS[place] in drop:
            why[rows[DROPS[place]]] = place
    kept = np.add.reduceat(why < 0, bounds[:-1], dtype=np.int64)
    for k in np.flatnonzero(kept == 0).tolist():
        first, last = int(bounds[k]), int(bounds[k + 1])
        if why[first] != DROPS.index("test"):
            why[first + int(cosines[first:last].argmax())] = -1
    return why


def reason_column(why: NDArray[np.int8]) -> pa.DictionaryArray:
    """Return the reasons as text; null if an image is kept."""
    return pa.DictionaryArray.from_arrays(pa.array(why, mask=why < 0), [REASONS[name] for name in DROPS])


def merged_labels(names: Ints, duplicates: Pairs) -> Ints:
    """Return for each identity (I,) the lowest label of the identities connected to it by pairs."""
    graph = coo_array((np.ones(len(duplicates[0]), bool), duplicates[:2]), shape=(len(names), len(names)))
    count, person = connected_components(graph, directed=False)
    lowest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(lowest, person, names)
    return lowest[person]


def findings(
    found: Found,
    why: NDArray[np.int8],
    keys_at: Callable[[Ints], pa.Array],
    names: Ints,
    bounds: Ints,
    cosines: NDArray[np.float64],
    test_names: Ints,
) -> Findings:
    """Return tables of the findings.

    Args:
        why: result of `reasons`.
        keys_at: returns the keys of rows.
        names, test_names: labels of the identities.
    """

    def table(sides: tuple[Ints, ...], values: NDArray[np.float64] | None, *, ascending: bool = False) -> pa.Table:
        if values is not None:
            order = np.argsort(values if ascending else -values, kind="stable")
            sides, values = tuple(side[order] for side in sides), values[order]
        columns = {}
        for prefix, rows in zip(("", "other_"), sides, strict=False):
            columns[f"{prefix}key"] = keys_at(rows)
            columns[f"{prefix}label"] = names[np.searchsorted(bounds, rows, side="right") - 1]
        return pa.table(columns if values is None else {**columns, "cosine": values})

    counts = np.bincount(why[why >= 0], minlength=len(DROPS)).tolist()
    a, b = names[found.duplicates[0]], names[found.duplicates[1]]
    return Findings(
        outliers=table((found.outliers,), cosines[found.outliers], ascending=True),
        duplicates=_labels_table(np.minimum(a, b), np.maximum(a, b), found.duplicates[2], "other_label"),
        conflicts=table(found.conflicts[:2], found.conflicts[2]),
        bytes=table(found.copies[:2], None),
        test=_labels_table(names[found.overlap[0]], test_names[found.overlap[1]], found.overlap[2], "test_label"),
        num_dropped={REASONS[name]: count for name, count in zip(DROPS, counts, strict=True)},
    )


def _labels_table(labels: Ints, others: Ints, cosines: NDArray[np.float64], other: str) -> pa.Table:
    order = np.argsort(-cosines, kind="stable")
    return pa.table({"label": labels[order], other: others[order], "cosine": cosines[order]})
