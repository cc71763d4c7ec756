"""Source: a text file that lists image files with their labels (csv, tsv, .lst)."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayface.data.classes import MAX_LABEL
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.image_file import has_image_suffix, read_image_file
from rayface.data.sources.lst import LineError, ListFormat, format_of, is_label
from rayface.storage import DataError, Source, forward_reads, is_local, normalise, split

_PART_BYTES = 4 << 20  # about 60,000 lines
_MAX_LINE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ListSettings(SourceSettings):
    """Settings of a list.

    Attributes:
        root: folder of the images, which no path may leave; None: the folder of the list.
    """

    root: str | None = None


class ListSource(DatasetSource):
    """A text file with a path and a label in each line; a part is 4 MiB of it.

    The first line, blank ones apart, is a header if it names a column of paths and one of labels. Labels are integers
    if the first one is, names otherwise.
    """

    kind = "list"
    settings_class = ListSettings
    expects = "lines with the path of an image and its label"

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        assert isinstance(self.settings, ListSettings)
        self._folder = normalise(self.settings.root) if self.settings.root else split(self.root)[0]
        self._size = 0
        self._format = ListFormat(None, -1, -1, False)
        self._header = -1  # offset; -1: none
        self._has_integers = False

    def prepare(self, near: str) -> None:
        if is_local(self.root) and os.path.isdir(self.root):
            raise DataError(f"{self.root}: is a folder: give the file that lists its images, or --from folder")
        with Source(self.root) as source:
            self._size = source.size
            texts = list(_texts(0, source.read(0, _MAX_LINE)))
        lines = [line for _, line in texts]
        try:
            self._format = format_of(*lines[:2]) if lines else self._format
            if len(lines) <= self._format.has_header:
                raise DataError(f"{self.root}: lists no image: each line needs the path of an image and its label")
            first = self._format.parse(lines[self._format.has_header])
        except LineError as error:
            reason = f"no list of paths and labels ({error}): name its columns path and label in the first line"
            raise DataError(f"{self.root}: {reason}") from None
        self._header = texts[0][0] if self._format.has_header else -1
        self._has_integers = is_label(first[1])

    def parts(self) -> Sequence[str]:
        name = split(self.root)[1].rpartition(".")[0] or split(self.root)[1]
        return [f"{name}-{number:05d}" for number in range(-(-self._size // _PART_BYTES))]

    def input_files(self) -> Sequence[str]:
        return [self.root]

    def list_images(self, part: int) -> PartListing:
        faults = FaultLog(self.root)
        paths: list[str] = []
        names: list[str] = []
        labels = array("q")
        for offset, line in self._lines(part):
            try:
                path, label = self._format.parse(line)
                inside = self._inside(path)
                value = self._label(label)
            except LineError as error:
                reason = f"{error}: {line.strip()[:80]!r}"
                faults.add(Fault(shard=self.root, member=None, offset=offset, reason=reason, kind="label"))
                continue
            paths.append(inside)
            labels.append(value) if isinstance(value, int) else names.append(value)
        identities = pa.array(labels, pa.int64()) if self._has_integers else pa.array(names, pa.string())
        keys = [path.rpartition(".")[0] if has_image_suffix(path) else path for path in paths]
        images = pa.table(
            {"key": pa.array(keys, pa.string()), "identity": identities, "path": pa.array(paths, pa.string())}
        )
        return PartListing(images=images, faults=faults, image_size=size_of_first(self, part, images))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        for path in images["path"].to_pylist():
            yield read_image_file(self._folder, path)

    def _lines(self, part: int) -> Iterator[tuple[int, str]]:
        """Yield (offset, line) of the lines that begin in the part, without the header and empty ones."""
        start, stop = part * _PART_BYTES, min((part + 1) * _PART_BYTES, self._size)
        with Source(self.root) as source:
            fetch = forward_reads(source)
            before = b"\n" if start == 0 else fetch(start - 1, 1)
            data = fetch(start, stop - start)
            while data and not data.endswith(b"\n") and start + len(data) < self._size:  # the end of the last line
                more = fetch(start + len(data), _MAX_LINE)
                data += more[: more.find(b"\n") + 1 or len(more)]
        begun = start if before != b"\n" else -1  # a line of the part before
        for at, line in _texts(start, data):
            if at not in (begun, self._header) and at < stop:
                yield at, line

    def _inside(self, path: str) -> str:
        """Return a path relative to the folder; LineError if it leads out."""
        out = f"path that leads out of {self._folder}: set convert.options.root"
        if "://" in path:
            raise LineError(out)
        if is_local(self._folder) and os.path.isabs(path):
            path = os.path.relpath(path, self._folder)
        path = os.path.normpath(path.replace("\\", "/"))
        if path.startswith("../") or path in ("..", ".") or os.path.isabs(path):
            raise LineError(out)
        return path

    def _label(self, text: str) -> int | str:
        if not self._has_integers:
            return text
        if not is_label(text) or not 0 <= float(text) <= MAX_LABEL:
            raise LineError(f"label that is no integer from 0 to {MAX_LABEL}")
        return int(float(text))


def _texts(at: int, data: bytes) -> Iterator[tuple[int, str]]:
    """Yield (offset, line) of the lines that are not blank; `at` is the offset of the data."""
    for raw in data.split(b"\n"):
        line = raw.decode("utf-8-sig" if at == 0 else "utf-8", "backslashreplace").rstrip("\r")
        if line.strip():
            yield at, line
        at += len(raw) + 1
