"""Find mislabelled images and duplicate identities, list them, and drop or merge them if configured.

Finds outliers within an identity, identities that are one person, images that two identities share, equal files, and
identities of a test set. All searches are exact. `clean` works in memory; `clean.job` does the same on a cluster.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Floats, Ints, check_embeddings, group_offsets, identities_of
from rayface.config import CleanConfig
from rayface.curate.clean.findings import (
    DROPS,
    Findings,
    Found,
    copies_of,
    far_from_mean,
    findings,
    merged_labels,
    reason_column,
    reasons,
)
from rayface.curate.clean.pair_search import (
    Apart,
    Matrix,
    Pairs,
    PairSearch,
    concatenated,
    known_pairs,
    leading_axes,
    most_pairs,
    no_pairs,
    tiles,
    too_many,
)
from rayface.curate.cosines import identity_centers

_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class CleanReport(Findings):
    """Findings, and the resulting decisions.

    Attributes:
        reason: (N,) why an image is dropped, one of REASONS; null: it is kept.
        labels: (N,) labels after merging.
    """

    reason: pa.DictionaryArray
    labels: Ints


def clean(
    embeddings: ArrayLike,
    labels: ArrayLike,
    keys: pa.Array,
    options: CleanConfig,
    *,
    test_embeddings: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    digests: ArrayLike | None = None,
) -> CleanReport:
    """Find mislabelled images and duplicate identities.

    The last image of an identity is dropped only if the identity is in the test set; otherwise the image nearest to the
    mean is kept.

    Args:
        embeddings: (N, D) of any norm, the images of an identity adjacent; may be a memory map.
        labels: (N,) integers.
        keys: (N,) string, unique.
        options: searches to run and decisions to take.
        test_embeddings, test_labels: (M, D), (M,) of the test set, for options.above.
        digests: (N,) texts, bytes or numbers, equal if and only if the files are equal, for options.bytes.

    Returns:
        The findings. Additional memory: 4 * D bytes per identity, 20 per image, and blocks. Conflicts take up to
        N * N * D / 2 products, duplicates I * I * D / 2 for I identities.

    Raises:
        ValueError: wrong shapes or options; NaN, infinity or a vector of zeros; too many pairs.
    """
    values, own, keys = check_embeddings(embeddings), _labels(labels, "labels"), pa.array(keys, pa.string())
    _check(values, own, keys, options, test_embeddings, test_labels, digests)
    bounds = group_offsets(own)
    centers, cosines = identity_centers(values, bounds)
    limit = most_pairs(len(values))
    duplicates = _pairs_above("duplicates", centers, None, options.duplicates, limit)
    apart = Apart(bounds, known_pairs(duplicates, len(centers)))
    conflicts = _pairs_above("conflicts", values, None, options.conflicts, limit, apart)
    test_centers, test_names = _test_centers(test_embeddings, test_labels)
    overlap = no_pairs() if test_centers is None else _pairs_above("test", centers, test_centers, options.above, limit)
    outliers = far_from_mean(cosines, options.outliers)
    copies = no_pairs() if digests is None else copies_of(identities_of(digests, "digests")[0], cosines)
    found = Found(outliers=outliers, duplicates=duplicates, conflicts=conflicts, copies=copies, overlap=overlap)
    names = own[bounds[:-1]]
    why = reasons(found, options.dropped, cosines, bounds)
    listed = findings(found, why, lambda rows: keys.take(pa.array(rows)), names, bounds, cosines, test_names)
    return CleanReport(
        **vars(listed),
        reason=reason_column(why),
        labels=np.repeat(merged_labels(names, duplicates) if options.merge else names, np.diff(bounds)),
    )


def _test_centers(embeddings: ArrayLike | None, labels: ArrayLike | None) -> tuple[NDArray[np.float32] | None, Ints]:
    """Return the centers of a test set's identities, None without a test set, and their labels."""
    if embeddings is None or labels is None:
        return None, np.zeros(0, np.int64)
    own = _labels(labels, "test_labels")
    order = np.argsort(own, kind="stable")
    bounds = group_offsets(own[order])
    return identity_centers(check_embeddings(embeddings)[order], bounds)[0], own[order][bounds[:-1]]


def _labels(labels: ArrayLike, name: str) -> Ints:
    values = np.asarray(labels)
    if len(values) and values.dtype.kind not in "iu":
        raise ValueError(f"{name}: are {values.dtype}: must be integers")
    return values.astype(np.int64)


def _check(
    values: Floats,
    labels: Ints,
    keys: pa.Array,
    options: CleanConfig,
    test_embeddings: ArrayLike | None,
    test_labels: ArrayLike | None,
    digests: ArrayLike | None,
) -> None:
    if len(values) == 0:
        raise ValueError("embeddings: no images: there is nothing to search")
    if not len(values) == len(labels) == len(keys):
        raise ValueError(f"embeddings {len(values)}, labels {len(labels)}, keys {len(keys)}: must be as many")
    if keys.null_count or compute.count_distinct(keys).as_py() < len(keys):
        raise ValueError("keys: some are missing or occur twice: each image needs its own")
    check_options(options)
    if (options.above is None) != (test_embeddings is None) or (test_embeddings is None) != (test_labels is None):
        raise ValueError("test: needs a cosine, and embeddings and labels of the test set")
    if test_embeddings is not None and test_labels is not None:
        shape, rows = np.shape(test_embeddings), np.shape(test_labels)
        if len(shape) != 2 or shape[1] != values.shape[1] or rows != shape[:1]:
            raise ValueError(f"test: embeddings {shape}, labels {rows}: must be (M, {values.shape[1]}) and (M,)")
    if options.bytes != (digests is not None):
        raise ValueError("bytes: needs digests, and is needed for them")
    if digests is not None and np.shape(digests) != (len(values),):
        raise ValueError(f"digests shape {np.shape(digests)}: must be ({len(values)},), one per image")


def check_options(options: CleanConfig) -> None:
    """Raise ValueError, one line, for options that contradict each other."""
    looked_for = {"test": options.above, **{name: getattr(options, name) for name in DROPS if name != "test"}}
    for name in options.drop:
        if name not in DROPS:
            raise ValueError(f"clean.drop: {name!r}: must be of {', '.join(DROPS)}")
        if looked_for[name] is None or looked_for[name] is False:
            raise ValueError(f"clean.drop: {name!r}: needs clean.{name}, to find them first")
    if options.merge and options.duplicates is None:
        raise ValueError("clean.merge: needs clean.duplicates, the cosine above which two identities are one")


def _pairs_above(
    name: str, left: Matrix, right: Matrix | None, threshold: float | None, limit: int, apart: Apart | None = None
) -> Pairs:
    """Return the pairs above a threshold; none without one."""
    if threshold is None:
        return no_pairs()
    axes = leading_axes(left, right, threshold)
    search = PairSearch(name, left, right, threshold, limit=limit, apart=apart, axes=axes)
    found: list[Pairs] = []
    total = 0
    for tile in tiles(len(left), None if right is None else len(right), left.shape[1], _BLOCK_BYTES):
        found.append(search(tile))
        total += len(found[-1][0])
        if total > limit:
            raise too_many(name, threshold, limit)
    return concatenated(found)
