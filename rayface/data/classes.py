"""Classes that have images, and label spaces that are almost all holes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.storage import DataError

Ints = NDArray[np.integer[Any]]
MAX_LABEL = 2**31 - 1
_MAX_EMPTY = 100  # classes for each one that has an image: one shard of 40,000 images of WebFace42M has 50
_FEW = 10_000  # classes that cost nothing


def num_with_images(labels: Ints, num_classes: int) -> int:
    """Return how many of the labels from 0 to `num_classes` - 1 occur. Memory: 4 bytes a sample at most."""
    if num_classes > 4 * len(labels):
        return len(np.unique(labels))
    occurs = np.zeros(num_classes, bool)
    occurs[labels] = True
    return int(np.count_nonzero(occurs))


def described(num_images: int, num_classes: int, with_images: int) -> str:
    """Return the counts in words; that some classes have no image is said where it is so."""
    holes = f", {with_images:,} of them with images" if with_images != num_classes else ""
    return f"{num_images:,} images, {num_classes:,} classes{holes}"


def holes_in(root: str, labels: Ints, num_classes: int) -> str | None:
    """Return what is wrong with labels that nobody can mean, and the remedy; None where most classes have images."""
    if num_classes <= _FEW or num_classes <= _MAX_EMPTY * (present := num_with_images(labels, num_classes)):
        return None
    return (
        f"labels have holes: {described(len(labels), num_classes, present)}; number them anew: `rayface convert --from "
        f"webdataset {root} OUT` makes a dataset of {present:,} classes"
    )


def refuse_holes(root: str, labels: Ints, num_classes: int) -> None:
    """Raise DataError where there are more than 100 classes for each one with an image, and no names say so."""
    if reason := holes_in(root, labels, num_classes):
        raise DataError(f"{root}: {reason}")
