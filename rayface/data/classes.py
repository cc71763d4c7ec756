"""Count classes with images, and reject label spaces with too many empty classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.storage import DataError
from rayface.values import counted

Ints = NDArray[np.integer[Any]]
MAX_LABEL = 2**31 - 1
_MAX_EMPTY = 100  # classes per class with images; a shard of 40,000 images of WebFace42M has 50
_FEW = 10_000  # classes that need no check


def num_with_images(labels: Ints, num_classes: int) -> int:
    """Return how many of the labels from 0 to `num_classes` - 1 occur. Memory: 4 bytes a sample at most."""
    if num_classes > 4 * len(labels):
        return len(np.unique(labels))
    occurs = np.zeros(num_classes, bool)
    occurs[labels] = True
    return int(np.count_nonzero(occurs))


def described(num_images: int, num_classes: int, with_images: int) -> str:
    """Return the counts as text; it mentions empty classes if there are any."""
    holes = f", {with_images:,} of them with images" if with_images != num_classes else ""
    return f"{counted(num_images, 'image')}, {counted(num_classes, 'class')}{holes}"


def holes_in(root: str, labels: Ints, num_classes: int) -> str | None:
    """Return why labels with too many empty classes are wrong, and the remedy; None if they are acceptable."""
    if num_classes <= _FEW or num_classes <= _MAX_EMPTY * (present := num_with_images(labels, num_classes)):
        return None
    return (
        f"labels have holes: {described(len(labels), num_classes, present)}; renumber them: `rayface convert --from "
        f"webdataset {root} OUT` writes a dataset of {present:,} classes"
    )


def refuse_holes(root: str, labels: Ints, num_classes: int) -> None:
    """Raise DataError if there are more than 100 classes per class with images."""
    if reason := holes_in(root, labels, num_classes):
        raise DataError(f"{root}: {reason}")
