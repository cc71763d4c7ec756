"""Lists of images with labels (.lst) as InsightFace and MXNet's im2rec write them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rayface.storage import open_binary


def names_in_lst(path: str, labels: Sequence[int]) -> list[str] | None:
    """Return the names of labels, which are the folders of their images; None unless they differ and all are known.

    Memory: one name a label.
    """
    names: dict[int, str] = {}
    for image, label in _images_of(path):
        folder = image.rstrip("/").rpartition("/")[0].rpartition("/")[2]
        if not folder or names.setdefault(label, folder) != folder:
            return None
    if len(set(names.values())) < len(names) or not all(label in names for label in labels):
        return None
    return [names[label] for label in labels]


def _images_of(path: str) -> Iterator[tuple[str, int]]:
    """Yield (path of an image, label): of InsightFace's aligned, path, label or im2rec's number, labels, path."""
    with io.TextIOWrapper(open_binary(path), encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) < 3:
                continue
            image, label = (fields[1], fields[2]) if not _is_number(fields[1]) else (fields[-1], fields[1])
            if _is_number(label) and float(label).is_integer():
                yield image, int(float(label))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
