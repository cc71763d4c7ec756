"""Join the labels of several dataset directories: by identity name, unchanged, or kept separate."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rayface.data.classes import Ints
from rayface.storage import DataError
from rayface.values import counted

Join = Literal["names", "labels", "separate"]
_MAX_LABEL = 2**31 - 1
_SHOWN = 3
_BLOCK = 1 << 16
_LABELS = "set data.join=labels if a label is the same person in all of them"
_NAMES = "data.join=names if a name is the same person in all of them"
_SEPARATE = "or data.join=separate if no person is in two"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What the join of a directory depends on: a short name, its identities by label (None: no names), labels (n,)."""

    name: str
    identities: Sequence[str] | None
    num_classes: int
    labels: Ints

    @property
    def says_names(self) -> bool:
        """Whether identities name persons: numbers alone, as folders 1, 2, ..., are others in another directory."""
        return self.identities is not None and not self.says_numbers

    @property
    def says_numbers(self) -> bool:
        """Whether all identities are numbers: the labels that the images had before they were numbered again."""
        return bool(self.identities) and all(name.isdecimal() for name in self.identities or ())

    def first_labels(self) -> tuple[Ints, NDArray[Any]]:
        """Return labels of this space, and those that the images had at first; of labels with images, if unnamed."""
        own = np.unique(self.labels) if self.identities is None else np.arange(len(self.identities))
        return own, np.array([int(name) for name in self.identities or ()]) if self.says_numbers else own


@dataclass(frozen=True, kw_only=True)
class LabelJoin:
    """One label space.

    Attributes:
        mode: how labels were joined; None for one directory.
        identities: names by label, None if some directory has none.
        maps: new label by old label for each directory, (own classes,) int32; None: unchanged.
        text: one line for the user; None for one directory.
    """

    mode: Join | None
    identities: tuple[str, ...] | None
    num_classes: int
    maps: list[NDArray[np.int32] | None]
    text: str | None


def join_labels(parts: Sequence[Labelled], mode: Join | None) -> LabelJoin:
    """Join several label spaces into one.

    Names are compared in Unicode's composed form (NFC); labels with one name become one, also within a directory.

    Args:
        mode: None: by names if all directories have them and at most one has only numbers, else by labels if none is
            in two. "labels" are those that images had at first: where identities are numbers, these.

    Raises:
        DataError: it is ambiguous which labels are the same person, or a directory lacks the names that `mode` needs.
    """
    if len(parts) == 1:
        return _alone(parts[0])
    if mode is None:
        mode = "names" if _have_names(parts) else "labels"
        if mode == "labels" and (shared := _num_shared(parts)):
            raise _ambiguous(parts, shared)
    if mode == "names":
        if nameless := [part.name for part in parts if not part.identities]:
            raise DataError(f"data.join: names: {nameless[0]} has no identities.parquet: {_LABELS}, {_SEPARATE}")
        return _by_names(parts)
    if mode == "separate":
        return _apart(parts)
    return _by_numbers(parts) if any(part.says_numbers for part in parts) else _as_they_are(parts)


def _have_names(parts: Sequence[Labelled]) -> bool:
    """Return whether identities can be compared by name: numbers of one directory alone meet no others by chance."""
    return all(part.identities for part in parts) and sum(part.says_numbers for part in parts) <= 1


def _ambiguous(parts: Sequence[Labelled], shared: int) -> DataError:
    unnamed = next(part for part in parts if not part.says_names)
    lack = "only numbers for" if unnamed.identities else "no"
    names = f", {_NAMES}" if all(part.identities for part in parts) else ""
    return DataError(
        f"data.join: is not set, and {shared} labels are in more than one of "
        f"{', '.join(part.name for part in parts)}, and {unnamed.name} has {lack} identity names "
        f"that could tell who is the same person: {_LABELS}{names}, {_SEPARATE}"
    )


def _alone(part: Labelled) -> LabelJoin:
    """Return the label space of one directory; labels become one if they have one name."""
    names = [normalised(name) for name in part.identities or ()]
    hashes = np.sort(np.fromiter(map(hash, names), np.int64, len(names)))  # a set of 2 million names takes 130 MB
    if (hashes[1:] == hashes[:-1]).any():
        joined = _by_names([part])
        if joined.num_classes < part.num_classes:
            return replace(joined, mode=None, text=None)
    identities = None if part.identities is None else tuple(names)
    return LabelJoin(mode=None, identities=identities, num_classes=part.num_classes, maps=[None], text=None)


def _by_names(parts: Sequence[Labelled]) -> LabelJoin:
    joint: dict[str, int] = {}
    maps: list[NDArray[np.int32] | None] = []
    for part in parts:
        numbers = [joint.setdefault(normalised(name), len(joint)) for name in part.identities or ()]
        maps.append(np.array(numbers, np.int32))
    names = tuple(joint)
    both = _names_in_several(parts)
    shown = f" ({', '.join(both[:_SHOWN])}{', ...' if len(both) > _SHOWN else ''})" if both else ""
    text = f"joined by names: {_counts(parts)}; {len(both):,} in more than one{shown}; {counted(len(names), 'class')}"
    return LabelJoin(mode="names", identities=names, num_classes=len(names), maps=maps, text=text)


def _by_numbers(parts: Sequence[Labelled]) -> LabelJoin:
    """Join by the labels that images had at first, where some were numbered again; classes are in their order."""
    labels = [part.first_labels() for part in parts]
    joint = np.unique(np.concatenate([first for _, first in labels]))
    maps: list[NDArray[np.int32]] = []
    for part, (own, first) in zip(parts, labels, strict=True):
        size = max(part.num_classes, len(part.identities or ()))
        maps.append(np.full(size, -1, np.int32))  # of labels without images
        maps[-1][own] = np.searchsorted(joint, first)
    names: dict[int, str] = {}
    names_first = sorted(zip(parts, maps, strict=True), key=lambda each: each[0].says_numbers)
    for part, new in names_first:
        for label, name in zip(new.tolist(), part.identities or (), strict=False):
            names.setdefault(label, name)
    identities = tuple(names.get(label, str(first)) for label, first in enumerate(joint.tolist()))
    return LabelJoin(
        mode="labels",
        identities=identities if len(set(identities)) == len(identities) else None,
        num_classes=len(joint),
        maps=[None if np.array_equal(new, np.arange(len(new))) else new for new in maps],
        text=_labels_text(parts, _num_shared(parts), len(joint)),
    )


def _as_they_are(parts: Sequence[Labelled]) -> LabelJoin:
    num_classes = max(part.num_classes for part in parts)
    most: Sequence[str] = max((part.identities or () for part in parts), key=len)
    agree = all(part.identities is None or list(most[: part.num_classes]) == list(part.identities) for part in parts)
    return LabelJoin(
        mode="labels",
        identities=tuple(most) if agree and len(most) == num_classes else None,
        num_classes=num_classes,
        maps=[None] * len(parts),
        text=_labels_text(parts, _shared_labels(parts), num_classes),
    )


def _labels_text(parts: Sequence[Labelled], shared: int, num_classes: int) -> str:
    return (
        f"joined by labels: {_counts(parts)}; {counted(shared, 'label')} with images in more than one, each treated "
        f"as one person; {counted(num_classes, 'class')}"
    )


def _apart(parts: Sequence[Labelled]) -> LabelJoin:
    starts = np.cumsum([0, *(part.num_classes for part in parts)]).tolist()
    if starts[-1] > _MAX_LABEL:
        raise DataError(
            f"data.join: separate: {starts[-1]:,} classes are more than {_MAX_LABEL:,}: join by names or labels"
        )
    maps: list[NDArray[np.int32] | None] = [
        np.arange(start, start + part.num_classes, dtype=np.int32)
        for start, part in zip(starts[:-1], parts, strict=True)
    ]
    names = None
    both = _names_in_several(parts)
    if all(part.identities for part in parts):
        prefixes = [f"{part.name}/" if both else "" for part in parts]
        names = tuple(
            prefix + name for prefix, part in zip(prefixes, parts, strict=True) for name in part.identities or ()
        )
    shared = f"; {counted(len(both), 'name')} in more than one, treated as different persons" if both else ""
    text = f"kept separate: {_counts(parts)}, no person in two{shared}; {counted(starts[-1], 'class')}"
    return LabelJoin(mode="separate", identities=names, num_classes=starts[-1], maps=maps, text=text)


def normalised(name: str) -> str:
    """Return an identity's name in the form that is compared; file systems store accents differently."""
    return unicodedata.normalize("NFC", name)


def _names_in_several(parts: Sequence[Labelled]) -> list[str]:
    times = Counter(name for part in parts for name in {normalised(name) for name in part.identities or ()})
    return sorted(name for name, count in times.items() if count > 1)


def _num_shared(parts: Sequence[Labelled]) -> int:
    """Return the number of labels in more than one directory, before they were numbered again."""
    if not any(part.says_numbers for part in parts):
        return _shared_labels(parts)
    _, times = np.unique(np.concatenate([np.unique(part.first_labels()[1]) for part in parts]), return_counts=True)
    return int(np.count_nonzero(times > 1))


def _shared_labels(parts: Sequence[Labelled]) -> int:
    """Return the number of labels with images in more than one directory. Memory: 2 bytes a class."""
    times = np.zeros(max(part.num_classes for part in parts), np.uint8)
    for part in parts:
        occurs = np.zeros(part.num_classes, bool)
        for start in range(0, len(part.labels), _BLOCK):  # numpy takes 8 bytes for each index of an assignment
            occurs[part.labels[start : start + _BLOCK]] = True
        times[: part.num_classes] += occurs & (times[: part.num_classes] < 2)
    return int(np.count_nonzero(times > 1))


def _counts(parts: Sequence[Labelled]) -> str:
    return ", ".join(
        f"{part.name} {counted(part.num_classes, 'identity' if part.identities else 'label')}" for part in parts
    )
