"""Source: LMDB databases of images, with labels in the value, under a second key, or as a folder in the key."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayface.data.classes import MAX_LABEL
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.image_file import has_image_suffix
from rayface.data.sources.lmdb_values import Entry, EntryError, parse_entry
from rayface.storage import DataError, on_disk, one_line

_PART = 65_536  # entries
_COUNTS = (b"num-samples", b"num_samples", b"length", b"classnum")
_ABOUT = re.compile(rb"__\w+__")  # __len__, __keys__
_IMAGE, _LABEL = b"image-", b"label-"
_environments: dict[str, Any] = {}  # of this process, which may open a database only once
_lock = threading.Lock()


class LmdbSource(DatasetSource):
    """An LMDB database, a folder with data.mdb or a file; a part is 65,536 entries in the order of the keys.

    A value is an image, whose label is under `label-N` for a key `image-N` or whose identity is the folder in its key;
    a pickle of (bytes, label), which is never executed; or a Caffe Datum. Needs the package lmdb, whose C library
    trusts the pages of a database: do not read one of unknown origin.
    """

    kind = "lmdb"
    expects = "an LMDB database of images with labels"

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self.root = str(on_disk(self.root, "convert.source"))
        self._starts: list[bytes] = []  # first key of each part
        self._has_names = False

    def prepare(self, near: str) -> None:
        with _transaction(self.root) as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            self._starts = [bytes(key) for key in itertools.islice(keys, 0, None, _PART)]
            labels = (entry.label for _, entry in self._entries(transaction, b"", None) if isinstance(entry, Entry))
            self._has_names = isinstance(next(labels, 0), str)
        if not self._starts:
            raise DataError(f"{self.root}: the database is empty")

    def close(self) -> None:
        with _lock:
            if environment := _environments.pop(self.root, None):
                environment.close()

    def parts(self) -> Sequence[str]:
        return [f"{os.path.basename(self.root)}-{number:05d}" for number in range(len(self._starts))]

    def input_files(self) -> Sequence[str]:
        return [_data_file(self.root)]

    def list_images(self, part: int) -> PartListing:
        faults = FaultLog(self.root)
        keys: list[str] = []
        labels: list[Any] = []
        stored: list[bytes] = []
        stop = self._starts[part + 1] if part + 1 < len(self._starts) else None
        with _transaction(self.root) as transaction:
            for key, entry in self._entries(transaction, self._starts[part], stop):
                name = key.decode("utf-8", "backslashreplace")
                try:
                    label = self._label(entry)
                except EntryError as error:
                    faults.add(self._fault(name, str(error), error.kind))
                    continue
                keys.append(name.rpartition(".")[0] if has_image_suffix(name) else name)
                labels.append(label)
                stored.append(key)
        kind = pa.string() if self._has_names else pa.int64()
        columns = {"key": pa.array(keys, pa.string()), "identity": pa.array(labels, kind)}
        images = pa.table({**columns, "stored": pa.array(stored, pa.binary())})
        return PartListing(images=images, faults=faults, image_size=size_of_first(self, part, images))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        with _transaction(self.root) as transaction:
            for key in images["stored"].to_pylist():
                name, value = key.decode("utf-8", "backslashreplace"), transaction.get(key)
                try:
                    if value is None:
                        raise EntryError("is not there any more", "unreadable")
                    yield SourceImage(parse_entry(value).image(value), self.root, name)
                except EntryError as error:
                    yield self._fault(name, str(error), error.kind)

    def _entries(
        self, transaction: Any, start: bytes, stop: bytes | None
    ) -> Iterator[tuple[bytes, Entry | EntryError]]:
        """Yield (key, entry with its label) from a key on, without labels and counts."""
        cursor = transaction.cursor()
        if not (cursor.set_range(start) if start else cursor.first()):
            return
        for view, value in cursor.iternext():
            key = bytes(view)
            if stop is not None and key >= stop:
                return
            if _is_no_image(transaction, key):
                continue
            try:
                entry = parse_entry(value)
                if entry.label is None:
                    entry = entry._replace(label=_label_of_key(transaction, key))
                yield key, entry
            except EntryError as error:
                yield key, error

    def _label(self, entry: Entry | EntryError) -> int | str:
        if isinstance(entry, EntryError):
            raise entry
        if self._has_names:
            if not isinstance(entry.label, str):
                raise EntryError(f"label {entry.label} where the first image has a name", "label")
            return entry.label
        if not isinstance(entry.label, int) or not 0 <= entry.label <= MAX_LABEL:
            raise EntryError(f"label {str(entry.label)[:40]!r} is no integer from 0 to {MAX_LABEL}", "label")
        return entry.label

    def _fault(self, name: str, reason: str, kind: str) -> Fault:
        return Fault(shard=self.root, member=name, reason=reason, kind=kind)


def _is_no_image(transaction: Any, key: bytes) -> bool:
    """Return whether a key is that of a count or a table, or of the label of an image that is there."""
    if key.startswith(_LABEL):
        return transaction.get(_IMAGE + key.removeprefix(_LABEL)) is not None
    return key in _COUNTS or _ABOUT.fullmatch(key) is not None


def _label_of_key(transaction: Any, key: bytes) -> int | str:
    """Return the label of an image that is stored without one.

    Raises:
        EntryError: it has none.
    """
    if key.startswith(_IMAGE) and (text := transaction.get(_LABEL + key.removeprefix(_IMAGE))) is not None:
        digits = bytes(text).decode("utf-8", "backslashreplace").strip()
        is_number = len(digits) < 20 and digits.isascii() and digits.removeprefix("-").isdigit()
        return int(digits) if is_number else digits
    folder, slash, _ = key.decode("utf-8", "backslashreplace").rpartition("/")
    if not slash:
        raise EntryError("image without a label: no label-N for its image-N, and no folder in its key", "label")
    return folder.rpartition("/")[2]


@contextmanager
def _transaction(path: str) -> Iterator[Any]:
    """Read the database; values are views that end with the transaction.

    Raises:
        DataError: the package is missing, or it is no database or a truncated one.
    """
    try:
        import lmdb
    except ImportError:
        raise DataError("convert.kind: lmdb: needs the package lmdb: pip install 'rayface[lmdb]'") from None
    with _lock:
        if path not in _environments:
            _environments[path] = _opened(lmdb, path)
        environment = _environments[path]
    with environment.begin(buffers=True) as transaction:
        try:
            yield transaction
        except lmdb.Error as error:
            raise DataError(f"{path}: the database is corrupt ({one_line(error)})") from None


def _opened(lmdb: Any, path: str) -> Any:
    try:
        size = os.path.getsize(_data_file(path))
        environment = lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False)
    except (lmdb.Error, OSError) as error:
        raise DataError(f"{path}: not an LMDB database ({one_line(error)})") from None
    pages = environment.info()["last_pgno"] + 1
    if size < pages * environment.stat()["psize"]:  # it is mapped into memory: reading behind its end is a crash
        environment.close()
        raise DataError(f"{path}: truncated: {size} bytes of {pages} pages: download it again, or remove it")
    return environment


def _data_file(path: str) -> str:
    return os.path.join(path, "data.mdb") if os.path.isdir(path) else path
