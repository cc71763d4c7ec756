"""Source: a folder with one folder of images per identity."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.directory import refuse_unfinished
from rayface.data.manifest import UNFINISHED
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.image_file import has_image_suffix, printable, read_image_file
from rayface.data.sources.keys import ColumnValues, flat_key, numbered_keys
from rayface.storage import DataError, Source, on_disk, one_line

# Of file systems, network storage and tools; folders that begin with a dot are hidden as well.
_TOOL_NAMES = {
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
}
_PART = 256  # folders of identities


@dataclass(frozen=True, kw_only=True)
class FolderSettings(SourceSettings):
    """Settings of a folder; photographs differ in size, so images are resized by default."""

    image_size: int | None = 112


class FolderSource(DatasetSource):
    """One folder of images for each identity, at any depth below it; a part is 256 of these folders.

    Files are recognised as images by their content, whatever their names. Hidden files and folders and those of tools
    are skipped. Links that lead out of the root are not followed and count as lost; a link to a folder in the root is
    skipped, because that is read under its own name. Folders whose names differ only
    in their Unicode normalisation are one identity.
    """

    kind = "folder"
    settings_class = FolderSettings
    expects = "one folder of images for each identity, or one of all images if they have no labels"

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self.root = os.path.realpath(on_disk(self.root, "convert.source, align.source"))
        self._faults = FaultLog(self.root)  # of files beside the folders
        self._folders: list[str] = []

    def prepare(self, near: str) -> None:
        if not os.path.isdir(self.root):
            raise DataError(f"{self.root}: no such folder of identities")
        if os.path.exists(os.path.join(self.root, UNFINISHED)):
            refuse_unfinished(self.root, {UNFINISHED})
        for entry in self._entries("", self._faults):
            if entry.is_dir():
                self._folders.append(entry.name)
            else:
                self._faults.add(self._stray(entry))

    def parts(self) -> Sequence[str]:
        return self._folders[::_PART]

    def inventory(self) -> Sequence[str]:
        return self._folders

    def list_images(self, part: int) -> PartListing:
        faults = FaultLog(self.root)
        if part == 0:
            faults.update(self._faults)
        paths: list[str] = []
        identities: list[str] = []
        for folder in self._folders[part * _PART : (part + 1) * _PART]:
            files = list(self._walk(folder, faults))
            if not files:
                faults.add(self._fault(folder, "identity", "a folder without files"))
            paths += files
            identities += [unicodedata.normalize("NFC", printable(folder))] * len(files)
        columns = {
            "key": pa.array([key_of(path) for path in paths], pa.string()),
            "identity": pa.array(identities, pa.string()),
            "path": pa.array([os.fsencode(path) for path in paths], pa.binary()),
        }
        return PartListing(images=pa.table(columns), faults=faults)

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        for path in images["path"].to_pylist():
            yield read_image_file(self.root, os.fsdecode(path))

    def unique_keys(self, keys: Sequence[pa.ChunkedArray]) -> Iterable[str]:
        return numbered_keys(ColumnValues(keys))

    def _walk(self, folder: str, faults: FaultLog) -> Iterator[str]:
        """Yield the files below root/folder, relative to root."""
        waiting = [(folder, self._entries(folder, faults))]  # no recursion: folders may be nested very deeply
        while waiting:
            folder, entries = waiting[-1]
            entry = next(entries, None)
            if entry is None:
                waiting.pop()
            elif entry.is_dir():
                path = f"{folder}/{entry.name}"
                waiting.append((path, self._entries(path, faults)))
            else:
                yield f"{folder}/{entry.name}"

    def _entries(self, folder: str, faults: FaultLog) -> Iterator[os.DirEntry[str]]:
        """Yield the folders and regular files to read in a folder, by name."""
        try:
            found = sorted(os.scandir(os.path.join(self.root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise DataError(f"{self.root}: cannot be listed ({one_line(error)})") from None
            faults.add(self._fault(folder, "folder", f"cannot be listed ({error.strerror})"))
            return
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                faults.add(self._fault(path, "hidden", "hidden, or of a tool"))
            elif entry.is_symlink() and (refused := self._refused_link(entry)):
                faults.add(self._fault(path, *refused))
            elif not entry.is_dir() and not entry.is_file():
                faults.add(self._fault(path, "special file", "no regular file"))
            else:
                yield entry

    def _refused_link(self, entry: os.DirEntry[str]) -> tuple[str, str] | None:
        """Return the kind of fault of a link that is not followed, and the reason."""
        if not os.path.exists(entry.path):
            return "link", "symbolic link to nothing"
        target = os.path.realpath(entry.path)
        if os.path.commonpath([target, self.root]) != self.root:
            return "link", "symbolic link that leads out of the folder, not followed"
        if not entry.is_dir():
            return None
        if any(map(is_hidden, target[len(self.root) :].split("/"))):
            return "link", "symbolic link to a hidden folder, not followed"
        return "alias", "symbolic link to a folder that is read under its own name"

    def _stray(self, entry: os.DirEntry[str]) -> Fault:
        """Return the fault of a file beside the folders of identities."""
        try:
            with Source(entry.path) as source:
                is_image = image_format(source.read(0, SNIFF_BYTES)) is not None
        except DataError:
            is_image = has_image_suffix(entry.name)
        if is_image:
            return self._fault(entry.name, "outside", "image outside of an identity's folder")
        return self._fault(entry.name, "other file", "not an image")

    def _fault(self, path: str, kind: str, reason: str) -> Fault:
        return Fault(shard=self.root, member=printable(path), reason=reason, kind=kind)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or is created by a file manager or another tool."""
    return name.startswith(".") or name.lower() in _TOOL_NAMES


def key_of(path: str) -> str:
    """Return a flat key: `ada/x.1.jpg` becomes `ada_x_1`."""
    return flat_key(path.rpartition(".")[0] if has_image_suffix(path) else path)
