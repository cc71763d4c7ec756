"""Templates: one feature for all images of a person in one place, as in IJB-B and IJB-C."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import identities_of
from rayface.evaluation.verification import normalised


def template_features(
    embeddings: ArrayLike,
    templates: ArrayLike,
    medias: ArrayLike,
    face_scores: ArrayLike | None = None,
    keep_norm: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the features of templates: the sum over media of the mean of a medium's images, of length 1.

    See also `template_sums`, which does not normalise them.

    Args:
        embeddings: (N, D).
        templates: (N,) numbers or strings, the template of each image.
        medias: (N,) numbers or strings, the medium of each image within its template (a photograph, or a video for its
            frames).
        face_scores: (N,) weights of the images, for example the detector's scores.
        keep_norm: keep the length of the embeddings as a weight, as InsightFace's published tables do; else each
            embedding is normalised first.

    Returns:
        (T, D) features of length 1, and the (T,) ids of their templates in ascending order.

    Raises:
        ValueError: shapes do not fit, or an embedding, a weight or a template's sum is not finite or zero.
    """
    sums, ids = template_sums(embeddings, templates, medias, face_scores=face_scores, keep_norm=keep_norm)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if bad := ids[~has_direction(sums)].tolist():
        raise ValueError(
            f"template {bad[0]}: its images cancel out, their sum has length {lengths[ids == bad[0]].item()}: leave "
            f"it out; {len(bad)} of {len(ids)} do"
        )
    return sums / lengths, ids


def has_direction(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether the length of each sum (T, D) is finite and above 0."""
    lengths = np.linalg.norm(sums, axis=1)
    return np.isfinite(lengths) & (lengths > 0)


def template_sums(
    embeddings: ArrayLike, templates: ArrayLike, medias: ArrayLike, *, face_scores: ArrayLike | None, keep_norm: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the `template_features` before they are normalised; a template whose images cancel out has 0.

    Raises:
        ValueError: shapes do not fit, or an embedding or a weight is not finite or an embedding zero.
    """
    given = np.asarray(embeddings, np.float64)
    template, media = identities_of(templates, "templates")[0], identities_of(medias, "medias")[0]
    if given.ndim != 2 or template.shape != given.shape[:1] or media.shape != given.shape[:1]:
        raise ValueError(
            f"embeddings, templates and medias have shapes {given.shape}, {template.shape} and {media.shape}; they "
            "must be (N, D), (N,) and (N,)"
        )
    if not len(given):
        raise ValueError("embeddings: there are 0 images, there must be at least 1")
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
    return np.add.reduceat(means, first), ids
