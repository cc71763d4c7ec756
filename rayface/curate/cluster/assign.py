"""Assign images to known identities: the nearest center, if its cosine exceeds the threshold of a false accept rate."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.cluster.unit_vectors import UnitVectors, cluster_sums, read_keys_and_labels, write_unit_vectors
from rayface.curate.work_files import WorkPath
from rayface.embedding.embeddings import Embeddings
from rayface.evaluation.identification import thresholds_at_far
from rayface.ray_tasks import map_unordered


@dataclass(frozen=True, kw_only=True)
class AssignCounts:
    """What became of the images.

    Attributes:
        threshold: cosine to a center that an image must exceed.
        far: share of the images of strangers that may be assigned.
        identities: known identities.
        known: images assigned to one of them; the others are in new clusters or noise.
    """

    threshold: float
    far: float
    identities: int
    known: int


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The known identity (N,) of each image, by its label, -1: none; its cosine to the nearest center, and how far
    that of the second nearest is below it (2, if there is one center)."""

    identity: Ints
    score: NDArray[np.float32]
    margin: NDArray[np.float32]
    counts: AssignCounts


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Known identities: their labels (I,), rising, and unit centers (I, D)."""

    labels: Ints
    centers: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    part: int
    places: Ints
    cosines: NDArray[np.float32]


def gallery_of(vectors: UnitVectors, labels: Ints) -> Gallery:
    """Return the means of each label's unit vectors, divided by their norm."""
    names, own = np.unique(labels, return_inverse=True)
    sums, _ = cluster_sums(vectors, own)
    return Gallery(labels=names, centers=sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))


def far_threshold(vectors: UnitVectors, labels: Ints, far: float, key: str) -> float:
    """Return the cosine that the share `far` of images exceeds with the nearest center of another identity.

    Raises:
        ValueError: there is one identity, so no image is a stranger to any.
    """
    gallery = gallery_of(vectors, labels)
    if len(gallery.labels) < 2:
        raise ValueError(f"{key}: has one identity: must be several, whose images are strangers to the others")
    places, cosines = _nearest(vectors, gallery.centers)
    own = gallery.labels[places[:, 0]] == labels
    return float(thresholds_at_far(np.where(own, cosines[:, 1], cosines[:, 0]), [far])[0])


def assign(
    vectors: UnitVectors, known: Embeddings, labelled: Embeddings | None, work: WorkPath, far: float, block_bytes: int
) -> Assignment:
    """Assign images to the identities of `known`; a task per part.

    Args:
        labelled: images whose scores with the other identities among them give the threshold; None: those of `known`.
        work: folder for unit vectors.

    Raises:
        ValueError: there is one identity to take the threshold from.
    """
    own, labels = write_unit_vectors(known, work / "known", block_bytes), read_keys_and_labels(known)[1]
    gallery = gallery_of(own, labels)
    if labelled is None:
        threshold = far_threshold(own, labels, far, "clustering.assign")
    else:
        others = write_unit_vectors(labelled, work / "labelled", block_bytes)
        threshold = far_threshold(others, read_keys_and_labels(labelled)[1], far, "clustering.calibrate")
    places, cosines = _nearest(vectors, gallery.centers)
    identity = np.where(cosines[:, 0] > threshold, gallery.labels[places[:, 0]], -1)
    counts = AssignCounts(
        threshold=threshold, far=far, identities=len(gallery.labels), known=int(np.count_nonzero(identity >= 0))
    )
    margin = cosines[:, 0] - cosines[:, 1] if cosines.shape[1] > 1 else np.full(len(cosines), np.float32(2))
    return Assignment(identity=identity, score=cosines[:, 0], margin=margin, counts=counts)


def _nearest(vectors: UnitVectors, centers: NDArray[np.float32]) -> tuple[Ints, NDArray[np.float32]]:
    """Return the two nearest centers (N, 2) of each image and their cosines; one, if there is one."""
    count = min(2, len(centers))

    def find(part: int) -> _Nearest:
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(vectors.part(part), np.float32)
        cosines, places = faiss.knn(queries, centers, count, metric=faiss.METRIC_INNER_PRODUCT)
        return _Nearest(part=part, places=places, cosines=cosines)

    places = np.empty((vectors.num_rows, count), np.int64)
    cosines = np.empty((vectors.num_rows, count), np.float32)
    parts = list(range(vectors.num_parts))
    for found in map_unordered(find, parts, "compare with known identities", rows=vectors.num_rows):
        rows = slice(vectors.starts[found.part], vectors.starts[found.part + 1])
        places[rows], cosines[rows] = found.places, found.cosines
    return places, cosines
