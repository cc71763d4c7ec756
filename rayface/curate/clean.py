"""Faces and identities that look wrong: found and listed, dropped or merged only when asked.

Outliers within an identity, identities that are one person, faces that two identities share, equal bytes, identities
that a test set has too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from rayface.curate.cosines import unit_rows
from rayface.curate.identities import Floats, Ints, check_embeddings, group_offsets
from rayface.curate.neighbours import CenterIndex

DROPS = ("test", "bytes", "outliers", "conflicts")  # in order: the first that applies is a face's reason
REASONS = {"test": "in the test set", "bytes": "same bytes", "outliers": "outlier", "conflicts": "conflict"}
_BLOCK = 4096  # rows
_NEAREST = 4  # identities that a face is compared with
_MAX_PAIRS = 1_000_000

Pairs = tuple[Ints, Ints, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class CleanOptions:
    """What to look for; None: do not.

    Attributes:
        outliers: faces with a lower cosine to their identity's mean.
        duplicates: identities whose centers have a higher cosine.
        conflicts: faces of different identities with a higher cosine.
        bytes: faces whose files are equal.
        test: identities whose center has a higher cosine to that of an identity of the test set.
        drop: of DROPS, what to drop of what is found; the rest is only listed.
        merge: give duplicate identities one label, the lowest.
    """

    outliers: float | None = None
    duplicates: float | None = None
    conflicts: float | None = None
    bytes: bool = False
    test: float | None = None
    drop: tuple[str, ...] = ()
    merge: bool = False


@dataclass(frozen=True, kw_only=True)
class CleanReport:
    """What was found, worst first, and what became of it.

    Attributes:
        outliers: key, label, cosine (to the mean of its identity).
        duplicates: label, other_label, cosine (of the centers), the lower label first.
        conflicts: key, label, other_key, other_label, cosine; not of identities that are duplicates.
        bytes: key, label, other_key, other_label; the other is the one to stay.
        test: label, test_label, cosine (of the centers).
        reason: (N,) string, why a face is dropped; null: it stays.
        labels: (N,) as they were, or merged.
    """

    outliers: pa.Table
    duplicates: pa.Table
    conflicts: pa.Table
    bytes: pa.Table
    test: pa.Table
    reason: pa.Array
    labels: Ints


def clean(
    embeddings: ArrayLike,
    labels: ArrayLike,
    keys: pa.Array,
    options: CleanOptions,
    *,
    test_embeddings: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    digests: ArrayLike | None = None,
) -> CleanReport:
    """Look for faces and identities that are wrong.

    An identity never loses its last face but to the test set: of those to drop, the nearest to the mean stays.

    Args:
        embeddings: (N, D) of any norm, the faces of an identity next to each other; may be a memory map.
        labels: (N,) integers.
        keys: (N,) string, unique.
        options: what to look for and what to do.
        test_embeddings, test_labels: (M, D), (M,) of the test set, for options.test.
        digests: (N,) of any type, equal where the bytes of two samples are, for options.bytes.
    Returns:
        what was found. Memory beside it: 8 * D bytes for each identity, 40 for each face, and blocks of 4,096 rows.
        Identities are compared exactly up to `neighbours.EXACT` of them, approximately beyond.
    Raises:
        ValueError: wrong shapes or options; NaN, infinity or a vector of zeros.
    """
    values, own = check_embeddings(embeddings), np.asarray(labels, np.int64)
    _check(values, own, keys, options, test_embeddings, test_labels, digests)
    bounds = group_offsets(own)
    names = own[bounds[:-1]]
    centers, cosines = _centers(values, bounds)
    index = CenterIndex(centers)
    outliers = np.flatnonzero(cosines < options.outliers) if options.outliers is not None else np.zeros(0, np.int64)
    duplicates = _none() if options.duplicates is None else index.pairs_above(options.duplicates)
    conflicts = _none()
    if options.conflicts is not None:
        conflicts = _conflicts(values, bounds, index, options.conflicts, duplicates)
    copies = _none() if digests is None else _copies(np.asarray(digests), cosines)
    overlap, test_names = _none(), np.zeros(0, np.int64)
    if options.test is not None and test_embeddings is not None:
        test, order = check_embeddings(test_embeddings), np.argsort(np.asarray(test_labels), kind="stable")
        test_bounds = group_offsets(np.asarray(test_labels)[order])
        test_names = np.asarray(test_labels)[order][test_bounds[:-1]].astype(np.int64)
        overlap = index.above(_centers(test[order], test_bounds)[0], options.test)
    identity = np.repeat(np.arange(len(names)), np.diff(bounds))
    found = {
        "test": np.flatnonzero(np.isin(identity, overlap[1])),
        "bytes": copies[0],
        "outliers": outliers,
        "conflicts": _less_at_home(conflicts, cosines),
    }
    return CleanReport(
        outliers=_table(keys, own, (outliers,), cosines[outliers], ascending=True),
        duplicates=_labels_table(names[duplicates[0]], names[duplicates[1]], duplicates[2], "other_label"),
        conflicts=_table(keys, own, conflicts[:2], conflicts[2]),
        bytes=_table(keys, own, copies[:2], None),
        test=_labels_table(names[overlap[1]], test_names[overlap[0]], overlap[2], "test_label"),
        reason=_reasons(found, options.drop, cosines, bounds),
        labels=_merged(names, duplicates)[identity] if options.merge else own,
    )


def _check(
    values: Floats,
    labels: Ints,
    keys: pa.Array,
    options: CleanOptions,
    test_embeddings: ArrayLike | None,
    test_labels: ArrayLike | None,
    digests: ArrayLike | None,
) -> None:
    if len(values) == 0:
        raise ValueError("embeddings: no faces; there is nothing to look at")
    if not len(values) == len(labels) == len(keys):
        raise ValueError(f"embeddings {len(values)}, labels {len(labels)}, keys {len(keys)}: must be as many")
    check_options(options)
    if (options.test is None) != (test_embeddings is None) or (test_embeddings is None) != (test_labels is None):
        raise ValueError("test: needs a cosine, and embeddings and labels of the test set")
    if options.bytes != (digests is not None):
        raise ValueError("bytes: needs digests, and is needed for them")


def check_options(options: CleanOptions) -> None:
    """Raise ValueError, one line, for options that cannot be."""
    for name in ("outliers", "duplicates", "conflicts", "test"):
        threshold = getattr(options, name)
        if threshold is not None and not -1 < threshold < 1:
            raise ValueError(f"{name} {threshold}: must be above -1 and below 1, it is a cosine")
    for name in options.drop:
        if name not in DROPS:
            raise ValueError(f"drop {name!r}: must be of {', '.join(DROPS)}")
        if getattr(options, name) is None or getattr(options, name) is False:
            raise ValueError(f"drop {name!r}: needs {name}, to look for them first")
    if options.merge and options.duplicates is None:
        raise ValueError("merge: needs duplicates, the cosine above which two identities are one")


def _none() -> Pairs:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _blocks(bounds: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of whole identities (first, last + 1) with about _BLOCK faces, or of one."""
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1)
        yield first, last
        first = last


def _centers(values: Floats, bounds: Ints) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Unit centers (I, D), and the cosine (N,) of each face to the mean of its identity, 0 where that is zero."""
    centers = np.zeros((len(bounds) - 1, values.shape[1]), np.float32)
    cosines = np.zeros(len(values))
    for first, last in _blocks(bounds):
        start, stop = int(bounds[first]), int(bounds[last])
        sums = np.zeros((last - first, values.shape[1]))
        for row in range(start, stop, _BLOCK):  # an identity may be larger than a block
            units = unit_rows(values, np.arange(row, min(row + _BLOCK, stop)))
            np.add.at(sums, _owners(bounds, first, row, len(units)), units)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        means = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 1e-9)
        centers[first:last] = means
        for row in range(start, stop, _BLOCK):
            units = unit_rows(values, np.arange(row, min(row + _BLOCK, stop)))
            owners = _owners(bounds, first, row, len(units))
            cosines[row : row + len(units)] = np.einsum("nd,nd->n", units, means[owners])
    return centers, cosines


def _owners(bounds: Ints, first: int, row: int, count: int) -> Ints:
    """Which identity after the first each row is of."""
    return np.searchsorted(bounds, np.arange(row, row + count), side="right") - 1 - first


def _conflicts(values: Floats, bounds: Ints, index: CenterIndex, above: float, duplicates: Pairs) -> Pairs:
    """Pairs of alike faces of different identities, each once: those of the identities nearest to each face."""
    count = len(bounds) - 1
    known = duplicates[0] * count + duplicates[1]
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(values), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(values)))
        units = unit_rows(values, rows)
        other = index.nearest(units.astype(np.float32), _NEAREST + 1).ravel()
        face = np.repeat(np.arange(len(rows)), _NEAREST + 1)
        own = _owners(bounds, 0, start, len(rows))[face]
        asked = (other >= 0) & (other != own)
        asked &= ~np.isin(np.minimum(own, other) * count + np.maximum(own, other), known)
        order = np.argsort(other[asked], kind="stable")
        face, other = face[asked][order], other[asked][order]
        for asking, their in _runs(face, other):
            for first in range(int(bounds[their]), int(bounds[their + 1]), _BLOCK):
                theirs = np.arange(first, min(first + _BLOCK, int(bounds[their + 1])))
                cosines = units[asking] @ unit_rows(values, theirs).T
                for i, j in np.argwhere(cosines > above).tolist():
                    pair = sorted((int(rows[asking[i]]), int(theirs[j])))
                    found[pair[0], pair[1]] = float(cosines[i, j])
        if len(found) > _MAX_PAIRS:
            raise ValueError(f"conflicts {above}: more than {_MAX_PAIRS:,} pairs of faces are above it; raise it")
    pairs = sorted(found)
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1], np.array([found[pair] for pair in pairs])


def _runs(values: Ints, groups: Ints) -> Iterator[tuple[Ints, int]]:
    """Values by group, where groups rise."""
    if len(groups):
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        yield from zip(np.split(values, starts[1:]), groups[starts].tolist(), strict=True)


def _copies(digests: NDArray[np.generic], cosines: NDArray[np.float64]) -> Pairs:
    """Faces with the bytes of another, and that other: the one nearest to the mean of its identity, else the first."""
    _, group = np.unique(digests, return_inverse=True)
    order = np.lexsort((-np.round(cosines, 10), group))  # stable: ties by row
    starts = np.r_[True, group[order][1:] != group[order][:-1]]
    stays = order[starts][np.cumsum(starts) - 1]
    again = ~starts
    rows, others = order[again], stays[again]
    by_row = np.argsort(rows)
    return rows[by_row], others[by_row], np.ones(len(rows))


def _less_at_home(pairs: Pairs, cosines: NDArray[np.float64]) -> Ints:
    """Of each pair the face that is farther from the mean of its identity, the later one where they are equal."""
    return np.unique(np.where(cosines[pairs[0]] < cosines[pairs[1]], pairs[0], pairs[1]))


def _reasons(found: dict[str, Ints], drop: tuple[str, ...], cosines: NDArray[np.float64], bounds: Ints) -> pa.Array:
    why = np.full(len(cosines), -1)
    for place in range(len(DROPS) - 1, -1, -1):
        if DROPS[place] in drop:
            why[found[DROPS[place]]] = place
    gone = np.r_[0, np.cumsum(why >= 0)]
    for k in np.flatnonzero(gone[bounds[1:]] - gone[bounds[:-1]] == np.diff(bounds)).tolist():
        first, last = int(bounds[k]), int(bounds[k + 1])
        if why[first] != DROPS.index("test"):
            why[first + int(cosines[first:last].argmax())] = -1
    words = pa.array([REASONS[name] for name in DROPS])
    return words.take(pa.array(why, mask=why < 0))


def _merged(names: Ints, duplicates: Pairs) -> Ints:
    """The lowest label of all identities that pairs connect, for each."""
    parent = np.arange(len(names))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = int(parent[k])
        return k

    for a, b in zip(duplicates[0].tolist(), duplicates[1].tolist(), strict=True):
        a, b = root(a), root(b)
        lower, higher = (a, b) if names[a] < names[b] else (b, a)
        parent[higher] = lower
    return names[[root(k) for k in range(len(names))]]


def _table(
    keys: pa.Array, labels: Ints, sides: tuple[Ints, ...], cosines: NDArray[np.float64] | None, ascending: bool = False
) -> pa.Table:
    columns = {}
    for prefix, rows in zip(("", "other_"), sides, strict=False):
        columns[f"{prefix}key"], columns[f"{prefix}label"] = keys.take(pa.array(rows)), labels[rows]
    if cosines is None:
        return pa.table(columns)
    order = np.argsort(cosines if ascending else -cosines, kind="stable")
    return pa.table({**columns, "cosine": cosines}).take(pa.array(order))


def _labels_table(labels: Ints, others: Ints, cosines: NDArray[np.float64], other: str) -> pa.Table:
    if other == "other_label":
        labels, others = np.minimum(labels, others), np.maximum(labels, others)
    table = pa.table({"label": labels, other: others, "cosine": cosines})
    return table.take(pa.array(np.argsort(-cosines, kind="stable")))
