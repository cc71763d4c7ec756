"""Source: WebDataset tars of any shape, compressed, in sub-folders, with holes in their labels."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayface.data.directory import refuse_unfinished
from rayface.data.listing import codec_of, refuse_not_a_tar, shard_files, tars_not_read
from rayface.data.manifest import IDENTITIES, MANIFEST, read_identities, read_manifest
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.data.shards.scan import ScanJob, scan_one
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.folder import is_hidden
from rayface.storage import (
    DataError,
    atomic_stream,
    exists,
    join,
    list_entries,
    locate,
    make_folder,
    one_line,
    require_utf8,
    split,
)

_COPY_BYTES = 4 << 20
_MAX_RATIO, _MAX_MORE = 100, 1 << 30  # bytes of an unpacked tar: this multiple of the packed ones, and these
_UNPACKING = threading.Lock()  # threads of a process read one tar
_TAR_SUFFIX = re.compile(r"\.tar(\.\w+)?$|\.t\w+$", re.IGNORECASE)


class WebDatasetSource(DatasetSource):
    """A tar, or all tars of a folder and its sub-folders; a part is a tar.

    All tars are one label space. Names are those of identities.parquet beside the tars. The task that lists a
    compressed tar unpacks it first, for all tasks, because samples are read by their offsets.
    """

    kind = "webdataset"
    expects = "tars with an image and its label for each sample"
    decodes_listed = True

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self._sources: list[str] = []  # paths and URIs
        self._unlisted: list[str] = []  # sub-folders
        self._codecs: list[str | None] = []
        self._near = ""

    def prepare(self, near: str) -> None:
        self._sources, self._near = _find_tars(self.root, self._unlisted), near
        self._codecs = [codec_of(path.partition("?")[0]) for path in self._sources]

    def parts(self) -> Sequence[str]:
        """Return the paths of the tars relative to their common folder, without suffixes."""
        plain = [path.partition("?")[0] for path in self._sources]
        common = len(os.path.commonpath([os.path.dirname(path) for path in plain])) + 1
        return [_stem(path[common:]) for path in plain]

    def input_files(self) -> Sequence[str]:
        return self._sources if self._sources == [self.root] else [*self._sources, join(self.root, IDENTITIES)]

    def list_images(self, part: int) -> PartListing:
        scan = scan_one(ScanJob(number=part, path=self._plain(part), deep=True, name_unused=True))
        faults = [self._named(part, fault) for fault in scan.faults]
        refuse_not_a_tar(faults)
        if part == 0:
            faults += [self._folder_fault(folder) for folder in self._unlisted] + self._missing()
        images = scan.table.drop_columns("shard").rename_columns({"label": "identity"})
        return PartListing(images=images, faults=FaultLog(self.root, faults), image_size=scan.image_size)

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        offset, num_bytes, label = (images[name].to_numpy() for name in ("offset", "num_bytes", "identity"))
        index = SampleIndex(np.zeros(len(images), np.int32), offset, num_bytes, label, label)
        for sample in read_samples([self._plain(part)], index):
            if isinstance(sample, Fault):
                yield self._named(part, sample)
            else:
                yield SourceImage(sample.jpeg, self._sources[part], sample.key, sample.offset)

    def identity_names(self, labels: Sequence[int]) -> list[str] | None:
        if _is_file(self.root) or IDENTITIES not in {file.name for file in list_entries(self.root)[0]}:
            return None
        names = read_identities(self.root, labels[-1] + 1, exact=False)
        return [names[label] for label in labels]

    def _named(self, part: int, fault: Fault) -> Fault:
        """Return the fault with the path of the original tar instead of its unpacked copy."""
        return dataclasses.replace(fault, shard=self._sources[part])

    def _folder_fault(self, folder: str) -> Fault:
        return Fault(shard=self.root, member=folder, reason="cannot be listed", kind="folder")

    def _missing(self) -> list[Fault]:
        """Return a fault for each shard of dataset.json that is in no folder, packed or not."""
        if _is_file(self.root) or not exists(join(self.root, MANIFEST)):
            return []
        try:
            shards = read_manifest(self.root).shards
        except DataError:  # the file of another program
            return []
        present = {_stem(split(path)[1]) for path in self._sources}
        reason = f"the file is missing, {MANIFEST} lists it"
        return [
            Fault(
                shard=join(self.root, each.path), member=None, reason=reason, num_lost=each.num_images, kind="not read"
            )
            for each in shards
            if _stem(split(each.path)[1]) not in present
        ]

    def _plain(self, part: int) -> str:
        """Return the path of a plain tar: the tar itself, or its unpacked copy, which is made if it is missing."""
        path, codec = self._sources[part], self._codecs[part]
        if codec is None:
            return path
        copy = join(self._near, f"{part}.tar")
        with _UNPACKING:
            if not exists(copy):
                make_folder(self._near)
                _unpack(path, codec, copy)
        return copy


def _unpack(path: str, codec: str, copy: str) -> None:
    filesystem, inside = locate(path)
    try:
        with filesystem.open_input_stream(inside, compression=codec) as stream, atomic_stream(copy) as file:
            left = _MAX_RATIO * (filesystem.get_file_info(inside).size or 0) + _MAX_MORE
            while data := stream.read(_COPY_BYTES):
                left -= len(data)
                if left < 0:
                    raise DataError(
                        f"{path}: unpacks to more than {_MAX_RATIO} times its size, which no tar of images does: "
                        "remove it, or unpack it yourself"
                    )
                file.write(data)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = f"cannot be unpacked into {copy} ({one_line(error)})"
        raise DataError(f"{path}: {reason}: replace the file or remove it") from None


def _find_tars(root: str, unlisted: list[str]) -> list[str]:
    """Return the tar `root`, or those in and below that folder; sub-folders that cannot be listed go to `unlisted`."""
    if _is_file(root):
        return [root]
    files, folders = list_entries(root, "folder or tar")
    refuse_unfinished(root, {file.name for file in files})
    refused: list[str] = []
    below = tars_not_read(root, files, folders, most_folders=None, unlisted=refused)
    unlisted += [folder for folder in refused if not is_hidden(folder.rpartition("/")[2])]
    names = [file.name for file in shard_files(files)] + below
    if not names:
        raise DataError(f"{root}: no tars (*.tar, *.tar.gz, *.tgz, ...) in this folder and its sub-folders")
    seen: dict[str, str] = {}
    for name in names:
        require_utf8(join(root, name))
        first = seen.setdefault(_stem(name), name)
        if first != name:
            raise DataError(f"{root}: {first} and {name} are probably the same tar, packed and unpacked: remove one")
    return [join(root, name) for name in names]


def _is_file(path: str) -> bool:
    filesystem, inside = locate(path)
    return bool(filesystem.get_file_info(inside).is_file)


def _stem(name: str) -> str:
    return _TAR_SUFFIX.sub("", name)
