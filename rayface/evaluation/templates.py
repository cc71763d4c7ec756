"""Templates: one feature for all images of a person in one place, as in IJB-B and IJB-C."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.evaluation.verification import normalised


def template_features(
    embeddings: ArrayLike,
    templates: ArrayLike,
    medias: ArrayLike,
    face_scores: ArrayLike | None = None,
    keep_norm: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the features of templates: the sum over media of the mean of a medium's images, of length 1.

    Args:
        embeddings: (N, D).
        templates: (N,) integers, the template of each image.
        medias: (N,) integers, the medium of each image within its template (a photograph, or a video for its frames).
        face_scores: (N,) weights of the images, for example the detector's scores.
        keep_norm: keep the length of the embeddings as a weight, as InsightFace's published tables do; else each
            embedding is normalised first.

    Returns:
        (T, D) features of length 1, and the (T,) ids of their templates in ascending order.

    Raises:
        ValueError: shapes do not fit, or an embedding, a weight or a template's sum is not finite or zero.
    """
    given = np.asarray(embeddings, np.float64)
    template, media = np.asarray(templates), np.asarray(medias)
    if given.ndim != 2 or template.shape != given.shape[:1] or media.shape != given.shape[:1]:
        raise ValueError(
            f"embeddings, templates and medias have shapes {given.shape}, {template.shape} and {media.shape}; they "
            "must be (N, D), (N,) and (N,)"
        )
    units = normalised(given)  # also refuses embeddings that are zero or not finite
    weighted = given if keep_norm else units
    if face_scores is not None:
        weights = np.asarray(face_scores, np.float64)
        if weights.shape != template.shape or not np.isfinite(weights).all():
            raise ValueError(f"face_scores of shape {weights.shape} must be one finite weight per image")
        weighted = weighted * weights[:, None]
    order = np.lexsort((media, template))
    template, media = template[order], media[order]
    starts = np.flatnonzero(np.append(True, (template[1:] != template[:-1]) | (media[1:] != media[:-1])))
    sizes = np.diff(np.append(starts, len(template)))
    means = np.add.reduceat(weighted[order], starts) / sizes[:, None]
    ids, first = np.unique(template[starts], return_index=True)
    sums = np.add.reduceat(means, first)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError(f"template {ids[np.argmin(lengths)]} has a feature of length 0: its images cancel out")
    return sums / lengths, ids
