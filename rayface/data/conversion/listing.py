"""First pass of a conversion: list all parts of the sources, and give every image a key and a label.

Listings stay in files. Memory of the driver: the identities, 8 bytes an image for the keys, and one part's listing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.conversion.mapping import MapParts
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.work_folder import StoredColumns, WorkFolder, note_of, read_table, write_table
from rayface.data.joint import distinct_names
from rayface.data.label_join import Labelled, join_labels
from rayface.data.sources.base import DatasetSource
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.keys import clean_key, numbered_keys
from rayface.progress import phase
from rayface.storage import DataError, exists

logger = logging.getLogger(__name__)

UNIT_IMAGES = 16_384

Place = tuple[int, int]
"""Numbers of a source and of a part of it."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows [start, stop) of a part's listing."""

    source: int
    part: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Images that are read by one task and resumed as one; `first` is the number of its first image among all."""

    number: int
    first: int
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """All images of the sources, in the order of their listings.

    Attributes:
        identities: names by label, None if unknown.
        image_size: (height, width) if the first images of all parts have one size.
        faults: what the listings skip.
    """

    units: tuple[Unit, ...]
    num_images: int
    num_labels: int
    identities: Sequence[str] | None
    image_size: tuple[int, int] | None
    faults: FaultLog


def list_sources(
    sources: Sequence[DatasetSource], work: WorkFolder, settings: ConvertSettings, map_parts: MapParts
) -> Listed:
    """List all parts, which an earlier call may have listed already, and write keys and labels of every unit.

    Raises:
        DataError: no image, or labels of several sources that cannot be joined.
    """
    places = [(number, part) for number, source in enumerate(sources) for part in range(len(source.parts()))]
    _list_parts(sources, places, work, map_parts)
    faults, sizes, lengths = FaultLog(sources[0].root), set(), []
    for place in places:
        table = read_table(work.listing(*place))
        note = note_of(table)
        faults.load(note["faults"])
        sizes |= {tuple(note["image_size"])} if note["image_size"] else set()
        lengths.append(len(table))
    if not sum(lengths):
        first = f"; the first fault: {faults.first()}" if faults.first() else ""
        needs = " and ".join(dict.fromkeys(f"{source.kind} needs {source.expects}" for source in sources))
        roots = ", ".join(source.root for source in sources)
        raise DataError(f"{roots}: no images to convert: {needs}; --from names the format{first}")
    units = tuple(_units(places, lengths, settings.limit or sum(lengths)))
    labels = _Labels(sources, [_paths(work, places, number) for number in range(len(sources))], settings)
    _write_units(sources, units, places, labels, work)
    return Listed(
        units=units,
        num_images=sum(map(len, units)),
        num_labels=labels.count,
        identities=labels.identities,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        faults=faults,
    )


def tasks_of(sources: Sequence[DatasetSource], units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Return the units that each task reads.

    That is one, but a part that can only be read forward is read by one task: else each task would read, before its own
    unit, all units before it in the part.
    """
    tasks: list[tuple[Unit, ...]] = []
    for unit in units:
        span = unit.spans[0]
        if sources[span.source].reads_forward and span.start >= UNIT_IMAGES:
            tasks[-1] += (unit,)
        else:
            tasks.append((unit,))
    return tasks


def _paths(work: WorkFolder, places: Iterable[Place], source: int) -> list[str]:
    return [work.listing(*place) for place in places if place[0] == source]


def _list_parts(
    sources: Sequence[DatasetSource], places: Sequence[Place], work: WorkFolder, map_parts: MapParts
) -> None:
    """Write the listing of every part that has none yet."""

    def list_part(place: Place) -> int:
        number, part = place
        listing = sources[number].list_images(part)
        faults = listing.faults or FaultLog(sources[number].root)
        note = {"faults": faults.state(), "image_size": listing.image_size}
        write_table(work.listing(*place), listing.images, note)
        return len(listing.images)

    missing = [place for place in places if not exists(work.listing(*place))]
    for _ in map_parts(list_part, missing, "list images"):
        pass


def _units(places: Sequence[Place], lengths: Sequence[int], limit: int) -> Iterator[Unit]:
    """Cut the first `limit` images of all parts into units."""
    spans: list[Span] = []
    number = first = filled = 0
    for (source, part), length in zip(places, lengths, strict=True):
        start, length = 0, min(length, limit - first - filled)
        while start < length:
            stop = min(length, start + UNIT_IMAGES - filled)
            spans.append(Span(source=source, part=part, start=start, stop=stop))
            filled += stop - start
            start = stop
            if filled == UNIT_IMAGES:
                yield Unit(number=number, first=first, spans=tuple(spans))
                spans, number, first, filled = [], number + 1, first + filled, 0
    if spans:
        yield Unit(number=number, first=first, spans=tuple(spans))


class _Labels:
    """Labels of all sources in one label space; names are numbered in order of appearance.

    Attributes:
        identities: names by label, None if a source does not know them.
        count: number of labels.
    """

    def __init__(
        self, sources: Sequence[DatasetSource], paths: Sequence[Sequence[str]], settings: ConvertSettings
    ) -> None:
        self._own = [_identities(StoredColumns(own, "identity")) for own in paths]
        by_label = len(sources) > 1 and settings.join == "labels"
        names = distinct_names([source.root for source in sources])
        labelled = [_labelled(*each, by_label) for each in zip(names, sources, self._own, strict=True)]
        if len(sources) > 1 and settings.join is None:
            _refuse_nameless(labelled)
        if settings.join == "separate" and any(each.identities for each in labelled):
            labelled = [_named(*each) for each in zip(labelled, self._own, strict=True)]
        joined = join_labels(labelled, settings.join)
        if joined.text:
            logger.info("%s", joined.text)
        spaces = [
            each.labels if new is None else new[each.labels] for each, new in zip(labelled, joined.maps, strict=True)
        ]
        present = np.unique(np.concatenate(spaces))
        self._new = [np.searchsorted(present, space).astype(np.int32) for space in spaces]
        self.count = len(present)
        known = joined.identities
        self.identities = None if known is None else [known[label] for label in present.tolist()]
        # Labels with gaps are numbered again; as names they tell who is the same person in another dataset.
        first = self._own[0] if len(sources) == 1 else present if by_label else None
        if known is None and isinstance(first, np.ndarray) and len(first) and first[-1] != len(first) - 1:
            self.identities = [str(label) for label in first.tolist()]

    def of(self, source: int, column: pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the labels of rows of a source's column `identity`."""
        own = self._own[source]
        if isinstance(own, np.ndarray):
            return self._new[source][np.searchsorted(own, column.to_numpy())]
        names = column.combine_chunks().dictionary_encode()
        numbers = np.array([own[name] for name in names.dictionary.to_pylist()], np.int64)
        return self._new[source][numbers[names.indices.to_numpy()]]


def _identities(columns: Iterable[pa.ChunkedArray]) -> dict[str, int] | NDArray[np.int64]:
    """Return the number of each name in order of appearance, or the labels that occur, rising."""
    names: dict[str, int] = {}
    labels = np.zeros(0, np.int64)
    for column in columns:
        if pa.types.is_integer(column.type):
            labels = np.union1d(labels, column.to_numpy())
        else:
            for name in column.unique().to_pylist():
                names.setdefault(name, len(names))
    return names or labels


def _labelled(name: str, source: DatasetSource, own: dict[str, int] | NDArray[np.int64], by_label: bool) -> Labelled:
    """Return the label space of a source: its identities by number or, with `by_label`, its labels as they are."""
    numbers = np.arange(len(own))
    if not isinstance(own, np.ndarray):
        if by_label:
            raise DataError(
                f"data.join: labels: {source.root} has identity names, not labels: set data.join=names if a name is "
                "the same person in all sources, or data.join=separate if no person is in two"
            )
        return Labelled(name=name, identities=list(own), num_classes=len(own), labels=numbers)
    names = source.identity_names(own.tolist()) if len(own) else None
    if by_label:
        given = Labelled(name=name, identities=names, num_classes=len(own), labels=numbers)
        if given.says_numbers:  # the source's labels were numbered again
            return given
        return Labelled(name=name, identities=None, num_classes=int(own.max(initial=0)) + 1, labels=own)
    return Labelled(name=name, identities=names, num_classes=len(own), labels=numbers)


def _named(source: Labelled, own: dict[str, int] | NDArray[np.int64]) -> Labelled:
    """Return a source whose labels without names are named SOURCE/LABEL, so that the others keep their names."""
    if source.identities or not isinstance(own, np.ndarray):
        return source
    return replace(source, identities=[f"{source.name}/{label}" for label in own.tolist()])


def _refuse_nameless(labelled: Sequence[Labelled]) -> None:
    """Raise DataError for a source among several whose identities have no names."""
    for each in labelled:
        if not each.identities:
            raise DataError(
                f"convert.source: {each.name}: has labels without identity names, so it is ambiguous which of them are "
                "persons of another source: set data.join=labels if a label is the same person in all of them, or "
                "data.join=separate if no person is in two"
            )


def _write_units(
    sources: Sequence[DatasetSource],
    units: Sequence[Unit],
    places: Sequence[Place],
    labels: _Labels,
    work: WorkFolder,
) -> None:
    """Write the keys and labels of all units, unless they are all there; the last one is written last."""
    if exists(work.unit(len(units) - 1)):
        return
    keys = _unique_keys(sources, places, work)
    with phase("name images", parts=len(units), rows=sum(map(len, units))) as current:
        for unit in units:
            own_keys: list[pa.Array] = []
            own_labels: list[NDArray[np.int32]] = []
            for span in unit.spans:
                column = read_table(work.listing(span.source, span.part))["identity"]
                own_labels.append(labels.of(span.source, column.slice(span.start, span.stop - span.start)))
                own_keys.append(pa.array(itertools.islice(keys, span.stop - span.start), pa.string()))
            table = pa.table({"key": pa.chunked_array(own_keys, pa.string()), "label": np.concatenate(own_labels)})
            write_table(work.unit(unit.number), table, {})
            current.advance()


def _unique_keys(sources: Sequence[DatasetSource], places: Sequence[Place], work: WorkFolder) -> Iterator[str]:
    """Yield the key of every image; keys of several sources are prefixed by the source."""
    names = list(numbered_keys([clean_key(name) for name in distinct_names([source.root for source in sources])]))
    for number, source in enumerate(sources):
        prefix = f"{names[number]}/" if len(sources) > 1 else ""
        for key in source.unique_keys(StoredColumns(_paths(work, places, number), "key")):
            yield f"{prefix}{key}"
