"""List a folder with one folder of images for each identity, and account for everything that is left out of it."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.samples import Fault
from rayface.storage import DataError, Source, one_line

_SUFFIXES = IMAGE_SUFFIXES | {"jp2", "pbm", "pgm", "ppm", "pnm"}
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
_NAMED = 1000  # of a kind; the others are counted
_NAMED_ONCE = ("hidden", "no image", "special file")  # nobody takes these for images: one example of them is enough


class LeftOut:
    """What a converter leaves out, by kind: named one by one up to a number, counted beyond it."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter[str] = Counter()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        if self.counts[fault.kind] <= self._limit(fault.kind):
            self._faults.append(fault)

    def faults(self) -> list[Fault]:
        """Return a fault for each thing that is named, and one for the rest of each kind; `num_lost` is how many."""
        rest = [(kind, count - self._limit(kind)) for kind, count in self.counts.items()]
        return self._faults + [
            Fault(shard=str(self.root), member=None, offset=0, reason=f"{more} more: {kind}", num_lost=more, kind=kind)
            for kind, more in rest
            if more > 0
        ]

    @staticmethod
    def _limit(kind: str) -> int:
        return 1 if kind in _NAMED_ONCE else _NAMED


@dataclass
class Listing:
    """Files below `root` that may be images: identities by label, relative paths in order, a label for each."""

    root: Path
    left_out: LeftOut
    identities: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def list_images(root: Path) -> Listing:
    """List the files of every identity, in the order of names; DataError where there is none.

    Hidden folders and files and those of tools are passed over, links that lead out of `root` and links to folders
    are not followed. Whether a file is an image is told by its content, later. Folders whose names are the same but for
    their Unicode normalisation are one identity.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of identities")
    listing = Listing(root, LeftOut(root))
    label_of: dict[str, int] = {}
    for entry in _entries(listing, ""):
        if not entry.is_dir():
            _refuse_stray(listing, entry)
            continue
        files = list(_walk(listing, entry.name))
        if not files:
            listing.left_out.add(fault_of(root, entry.name, "identity", "a folder without files"))
            continue
        name = unicodedata.normalize("NFC", printable(entry.name))
        label = label_of.setdefault(name, len(label_of))
        listing.paths += files
        listing.labels += [label] * len(files)
    listing.identities = list(label_of)
    if not listing.paths:
        raise DataError(f"{root}: no images in folders below it; there must be one folder for each identity")
    return listing


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one of those that tools leave beside images."""
    return name.startswith(".") or name.lower() in _TOOL_NAMES


def _walk(listing: Listing, folder: str) -> Iterator[str]:
    """Yield the files below root/folder, relative to root."""
    for entry in _entries(listing, folder):
        path = f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from _walk(listing, path)
        else:
            yield path


def _entries(listing: Listing, folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is to be read of a folder, by name: folders, and regular files."""
    root, left_out = listing.root, listing.left_out
    try:
        found = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        if not folder:
            raise DataError(f"{root}: cannot be listed ({one_line(error)})") from None
        left_out.add(fault_of(root, folder, "folder", f"cannot be listed ({error.strerror})"))
        return
    for entry in found:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if is_hidden(entry.name):
            left_out.add(fault_of(root, path, "hidden", "hidden, or of a tool"))
        elif entry.is_symlink() and (reason := _refused_link(root, entry)):
            left_out.add(fault_of(root, path, "link", reason))
        elif not entry.is_dir() and not entry.is_file():
            left_out.add(fault_of(root, path, "special file", "no regular file"))
        else:
            yield entry


def _refused_link(root: Path, entry: os.DirEntry[str]) -> str | None:
    if entry.is_dir():
        return "symbolic link to a folder, not followed"
    if not Path(entry.path).resolve().is_relative_to(root):
        return "symbolic link that leads out of the folder, not followed"
    return None if os.path.exists(entry.path) else "symbolic link to nothing"


def _refuse_stray(listing: Listing, entry: os.DirEntry[str]) -> None:
    """Leave out a file beside the identities' folders."""
    try:
        with Source(entry.path) as source:
            is_image = image_format(source.read(0, SNIFF_BYTES)) is not None
    except DataError:
        is_image = has_image_suffix(entry.name)
    if is_image:
        listing.left_out.add(fault_of(listing.root, entry.name, "outside", "image outside of an identity's folder"))
    else:
        listing.left_out.add(fault_of(listing.root, entry.name, "no image", "not an image"))


def fault_of(root: Path, path: str, kind: str, reason: str) -> Fault:
    return Fault(shard=str(root), member=printable(path), offset=0, reason=reason, kind=kind)


def printable(text: str) -> str:
    """Names that are not valid UTF-8 reach Python with surrogates, which no parquet or tar file can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def has_image_suffix(path: str) -> bool:
    return path.rpartition(".")[2].lower() in _SUFFIXES


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Return a key for every relative image path: flat, without dots (webdataset cuts keys there), unique.

    `ada/x.1.jpg` becomes `ada_x_1`; of paths that become the same, the later ones get -2, -3 and so on.
    """
    seen: set[str] = set()
    keys = []
    for path in paths:
        stem = path.rpartition(".")[0] if has_image_suffix(path) else path
        base = key = "".join(c if c.isalnum() or c in "-_+=@" else "_" for c in stem)
        number = 1
        while key in seen:
            number += 1
            key = f"{base}-{number}"
        seen.add(key)
        keys.append(key)
    return keys
