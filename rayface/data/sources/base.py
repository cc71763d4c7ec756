"""Interface of image sources, which `rayface convert` reads part by part."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa

from rayface.data.dataset import Dataset
from rayface.data.listing import files_below
from rayface.data.shards.samples import Fault
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.keys import keys_with_part
from rayface.storage import join, normalise, printable, split

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Settings of all sources; a source adds its own in a subclass.

    Attributes:
        image_size: height and width in pixels. Images of another size, format or EXIF orientation are turned upright,
            resized without a crop and encoded as JPEG. None keeps the bytes of every image.
        quality: JPEG quality of images that are encoded, from 1 to 100.

    Raises:
        ValueError: a setting out of range.
    """

    image_size: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size {self.image_size}: must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality {self.quality}: must be from 1 to 100")


class SourceImage(NamedTuple):  # not a dataclass: made once per image
    """Bytes of one image in its own format, and where they come from: file, member of it and byte, for messages.

    `measures` are the values that the source's `measures` name.
    """

    data: bytes
    shard: str
    member: str | None = None
    offset: int | None = None
    measures: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartListing:
    """The images of one part.

    Attributes:
        images: a row for each image, in the part's order. Columns: `key` string, the image's name, unique in its part
            if possible; `identity`, its name (string) or its label (int64); and any others that `read` needs.
        faults: files and images of the part that are not in `images`.
        image_size: (height, width) of the first image, None if unknown.

    Raises:
        ValueError: a column is missing or has nulls.
    """

    images: pa.Table
    faults: FaultLog | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("key", "identity"):
            if name not in self.images.column_names or self.images[name].null_count:
                raise ValueError(f"a source's listing must have a column {name!r} without nulls")


class DatasetSource(ABC):
    """A set of labelled images in some format.

    It consists of parts that several threads and processes list and read concurrently, in any order; the source is
    pickled for these. `list_images` and `read` must depend only on the source and the part, so that an interrupted
    conversion can repeat any part.

    Attributes:
        kind: name in SOURCES, recorded in dataset.json.
        settings_class: dataclass of the source's settings.
        expects: required content, for the message if there is no image.
        decodes_listed: `list_images` decodes every image and skips those that it cannot decode.
        reads_forward: `read` of rows in the middle of a part also reads all rows before them.
        beside: name of the file that `write_beside` writes, if any.
        measures: names of the values that `read` gives for every image; they are written into measures.parquet.
        root: absolute path or URI of the source.
    """

    kind: ClassVar[str]
    settings_class: ClassVar[type[SourceSettings]] = SourceSettings
    expects: str = "images with an identity each"
    decodes_listed: ClassVar[bool] = False
    reads_forward: bool = False
    beside: str | None = None
    measures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        self.root = normalise(src)
        self.settings = settings or self.settings_class()

    @property
    def title(self) -> str:
        """Origin of the images, for dataset.json."""
        return f"{self.kind} {printable(split(self.root)[1])}"

    def prepare(self, near: str) -> None:  # noqa: B027
        """Find the parts; called once, before all other methods.

        Args:
            near: path or URI of a folder for temporary files, which is the same on all nodes and is deleted with the
                job's own files. It does not exist yet.

        Raises:
            DataError: the source cannot be read or has no parts; one line.
        """

    def close(self) -> None:  # noqa: B027
        """Delete temporary files of `prepare` and `list_images`."""

    @abstractmethod
    def parts(self) -> Sequence[str]:
        """Return the names of the parts, always in the same order; keys found in several parts are prefixed by them."""

    def inventory(self) -> Sequence[str]:
        """Return names of what the source consists of, of which a resume refuses others."""
        return self.parts()

    def input_files(self) -> Sequence[str]:
        """Return the paths of the files that decide the result, if they are few: a resume refuses changed ones."""
        return ()

    @abstractmethod
    def list_images(self, part: int) -> PartListing:
        """List the images of a part, by its position in `parts`, without their bytes.

        Raises:
            DataError: the whole source must be refused for this part; one line.
        """

    @abstractmethod
    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        """Yield the image of each row, in their order, or the fault that prevents it.

        Args:
            images: rows of `list_images(part).images`, usually few, in rising order.
        """

    def for_task(self) -> DatasetSource:
        """Return the source for all reads of one task; it shares no position in a file with those of other tasks."""
        return self

    def identity_names(self, labels: Sequence[int]) -> list[str] | None:
        """Return the names of identities that are listed as labels; None if unknown."""
        return None

    def write_beside(self, dataset: Dataset) -> None:  # noqa: B027
        """Write files that belong beside the converted dataset, such as pairs.csv; called when it can be opened."""

    def unique_keys(self, keys: Sequence[pa.ChunkedArray]) -> Iterable[str]:
        """Return a key for each image, in order, from the column `key` of every part.

        Keys are relative paths without dots, and differ from each other.
        """
        return keys_with_part(self.parts(), keys)


def archives_below(root: str, folders: Sequence[str], suffix: str) -> list[Fault]:
    """Return a fault for each archive in a sub-folder of a source that reads those of its folder only."""
    reason = "in a sub-folder, which is not read: give it as a source of its own, or move the file"
    return [
        Fault(shard=join(root, f"{folder}/{name}"), member=None, reason=reason, kind="not read")
        for folder, names in files_below(root, folders)
        for name in names
        if name.lower().endswith(suffix) and not name.startswith(".")
    ]


def write_beside(sources: Sequence[DatasetSource], dataset: Dataset) -> None:
    """Write the files of `DatasetSource.write_beside`; of several sources none, as their keys have prefixes."""
    if len(sources) == 1:
        sources[0].write_beside(dataset)
        return
    for source in sources:
        if source.beside:
            logger.warning("%s: its %s is not written: convert the source alone to get it", source.root, source.beside)
