"""Write datasets: deterministic tar shards, index, identities and manifest; safe to interrupt and repeat."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.keys import read_keys, repeated_key
from rayface.data.manifest import (
    IDENTITIES,
    INDEX,
    MANIFEST,
    PAIRS,
    UNFINISHED,
    Manifest,
    Parent,
    ShardEntry,
    names_digest,
)
from rayface.data.output_folder import exclusive_output
from rayface.data.shards.members import Image, encode_sample, parse_name
from rayface.data.shards.scan import INDEX_SCHEMA, index_table
from rayface.data.shards.tar import end_of_archive, is_safe_name
from rayface.storage import (
    LARGEST_REMOTE,
    AtomicFile,
    DataError,
    delete,
    is_local,
    join,
    naming_full_disk,
    normalise,
    split,
    write_bytes,
)
from rayface.version import VERSION

DEFAULT_SHARD_SIZE = 256 * 2**20
ARCHIVE_END = 1024  # bytes after the last sample of a shard, at least
_FILES = "|".join(map(re.escape, (MANIFEST, INDEX, IDENTITIES, PAIRS)))
_OURS = re.compile(rf"shard-\d{{6,}}\.tar|{_FILES}|\..+\.tmp")


def write_dataset(
    out: str | Path,
    samples: Iterable[tuple[str, int, bytes]],
    *,
    name: str,
    identities: Sequence[str],
    image_size: tuple[int, int] | None,
    layout: Literal["shuffled", "by_identity"] = "shuffled",
    licence: str = "",
    source: str = "",
    parent: Parent | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    pairs: bytes | None = None,
) -> Dataset:
    """Write (key, label, image bytes) samples, in their order, as a dataset; return it opened.

    Labels are positions in `identities`, keys are unique and without dots, shards have at most `shard_size` bytes. The
    same samples give the same bytes. After an interruption, a repeated call starts over. Memory: one sample, 8 bytes
    for each written, and the index of one shard.

    Args:
        pairs: content of pairs.csv.

    Raises:
        DataError: `out` is not empty or cannot be written, or a key occurs twice.
    """
    with (
        naming_full_disk(str(out), "it starts over"),
        ShardWriter(
            out,
            name=name,
            identities=identities,
            image_size=image_size,
            layout=layout,
            licence=licence,
            source=source,
            parent=parent,
            shard_size=shard_size,
        ) as writer,
    ):
        for key, label, jpeg in samples:
            writer.add(key, label, jpeg)
        if pairs is not None:
            write_bytes(join(writer.root, PAIRS), pairs)
        return writer.finish()


class ShardFile:
    """Writes one shard: `add`, then `finish`; a context manager that deletes an unfinished file."""

    def __init__(self, path: str):
        self.size = 0  # bytes so far
        self._name = split(path)[1]
        self._file = AtomicFile(path)
        self._hash = hashlib.sha256()
        self._rows: tuple[list[str], array, array, array] = ([], array("q"), array("i"), array("i"))

    def add(self, key: str, label: int, image: Image) -> None:
        """Append a sample; ValueError for an invalid key."""
        self.append(key, label, _encoded(key, label, image))

    def append(self, key: str, label: int, sample: bytes) -> None:
        """Append an encoded sample."""
        for column, value in zip(self._rows, (key, self.size, len(sample), label), strict=True):
            column.append(value)
        self._write(sample)

    def finish(self, number: int) -> tuple[ShardEntry, pa.Table]:
        """Publish the shard; return its entry of the manifest, and its rows of the index as shard `number`."""
        self._write(end_of_archive(self.size))
        self._file.commit()
        keys, offsets, sizes, labels = self._rows
        table = index_table((keys, np.full(len(keys), number, np.int32), offsets, sizes, labels))
        digest = self._hash.hexdigest()
        return ShardEntry(path=self._name, num_images=len(keys), num_bytes=self.size, sha256=digest), table

    def abandon(self) -> None:
        """Delete the file unless it is finished."""
        self._file.abandon()

    def _write(self, data: bytes) -> None:
        self._file.stream.write(data)
        self._hash.update(data)
        self.size += len(data)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _encoded(key: str, label: int, image: Image) -> bytes:
    if not key or parse_name(f"{key}.jpg") != (key, key, "jpg") or not is_safe_name(key):
        raise ValueError(f"key {key!r}: must be a relative name without dots and control characters")
    return encode_sample(key, label, image)


class ShardWriter:
    """Writes a dataset sample by sample: `add`, then `finish`; a context manager that cleans up after errors.

    Without names, `identities` is None and `num_classes` gives their number.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str,
        identities: Sequence[str] | None,
        image_size: tuple[int, int] | None,
        num_classes: int = 0,
        layout: Literal["shuffled", "by_identity"] = "shuffled",
        licence: str = "",
        source: str = "",
        parent: Parent | None = None,
        shard_size: int = DEFAULT_SHARD_SIZE,
    ):
        self.identities = None if identities is None else _checked_identities(identities)
        num_classes = num_classes if self.identities is None else len(self.identities)
        if shard_size < 1:
            raise ValueError(f"shard_size {shard_size}: must be a positive number of bytes")
        self.root = normalise(out)
        if not is_local(self.root) and shard_size > LARGEST_REMOTE:
            raise ValueError(f"shard_size {shard_size}: must be at most {LARGEST_REMOTE} (5 GiB) on an object store")
        self.shard_size = shard_size
        self.manifest = Manifest(
            name=name,
            num_classes=num_classes,
            num_images=0,
            image_size=image_size,
            layout=layout,
            licence=licence,
            source=source,
            parent=parent,
            created_by=f"rayface {VERSION}",
            shards=[],
        )
        self.counts = np.zeros(num_classes, np.int64)
        self._hashes = array("q")
        self._shard: ShardFile | None = None
        self._ownership = contextlib.ExitStack()
        self._ownership.enter_context(exclusive_output(self.root, lambda each: bool(_OURS.fullmatch(each))))
        self._index = AtomicFile(join(self.root, INDEX))
        self._parquet = pq.ParquetWriter(self._index.stream, INDEX_SCHEMA)

    def add(self, key: str, label: int, jpeg: bytes) -> None:
        """Append a sample; ValueError for an invalid key or label."""
        if not 0 <= label < len(self.counts):
            raise ValueError(f"label {label} of {key}: must be from 0 to {len(self.counts) - 1}, one per identity")
        sample = _encoded(key, label, jpeg)
        if self._shard and self._shard.size + len(sample) + ARCHIVE_END > self.shard_size:
            self._close_shard()
        if self._shard is None:
            self._shard = ShardFile(join(self.root, shard_name(len(self.manifest.shards))))
        self._shard.append(key, label, sample)
        self._hashes.append(hash(key))
        self.counts[label] += 1

    def finish(self) -> Dataset:
        """Close the last shard, write index, identities and, last, dataset.json; return the dataset opened."""
        if self._shard:
            self._close_shard()
        if not self.manifest.shards:
            raise DataError(f"{self.root}: there are no samples to write")
        self._parquet.close()
        self._index.commit()
        self._refuse_duplicates()
        if self.identities:
            write_bytes(join(self.root, IDENTITIES), identities_file(self.identities, self.counts))
            self.manifest.identities = names_digest(self.identities)
        self.manifest.num_images = int(self.counts.sum())
        write_bytes(join(self.root, MANIFEST), self.manifest.to_json())
        delete(join(self.root, UNFINISHED))
        return open_dataset(self.root, max_corrupt_fraction=0)

    @property
    def num_images(self) -> int:
        """Number of samples added so far."""
        return len(self._hashes)

    def _close_shard(self) -> None:
        assert self._shard is not None
        entry, table = self._shard.finish(len(self.manifest.shards))
        self._parquet.write_table(table)
        self.manifest.shards.append(entry)
        self._shard = None

    def _refuse_duplicates(self) -> None:
        hashes = np.frombuffer(self._hashes, np.int64)
        if (key := repeated_key(hashes, read_keys(join(self.root, INDEX)))) is not None:
            raise DataError(f"{self.root}: key {key!r} occurs twice; keys must be unique in a dataset")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*(() if kind is None else (OSError,))):  # a full disk
            self._parquet.close()  # before its stream; no effect if it is closed
        if kind is not None:
            for file in (self._shard, self._index):
                if file is not None:
                    file.abandon()
        self._ownership.close()


def identities_file(names: Sequence[str], counts: np.ndarray) -> bytes:
    """Return the bytes of identities.parquet: name and number of images by label."""
    buffer = io.BytesIO()
    columns = {"label": np.arange(len(names), dtype=np.int64), "identity": list(names), "num_images": counts}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _checked_identities(identities: Sequence[str]) -> list[str]:
    names = [str(name) for name in identities]
    if not names:
        raise ValueError("identities: must name at least one identity")
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"identities: {twice!r} occurs twice; names must be unique")
    return names
