"""A dataset of any size for measurements: real manifest, index and identities; all shards are links to one tar."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.data.index import SOURCE_LABEL
from rayface.data.manifest import IDENTITIES, INDEX, MANIFEST, Manifest, Parent, ShardEntry
from rayface.data.shards.members import encode_sample
from rayface.data.shards.scan import INDEX_SCHEMA
from rayface.data.shards.tar import end_of_archive
from rayface.data.writer import identities_file, shard_name
from rayface.progress import phase

WEBFACE42M_IMAGES, WEBFACE42M_IDENTITIES, WEBFACE42M_SHARDS = 42_474_557, 2_059_906, 1_300
_SIZE = 112
_KEY_DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Size of a simulated dataset."""

    images: int = WEBFACE42M_IMAGES
    identities: int = WEBFACE42M_IDENTITIES
    shards: int = WEBFACE42M_SHARDS

    def check(self) -> None:
        """Raise ValueError, one line, for impossible sizes."""
        if not (self.images >= self.identities >= 1 and self.images >= self.shards >= 1):
            raise ValueError(
                f"images {self.images}, identities {self.identities}, shards {self.shards}: there must be at "
                "least one of each, and no fewer images than identities or shards"
            )


@dataclass(frozen=True, kw_only=True)
class SimulatedFolders:
    """Output of `simulate`.

    Attributes:
        dataset: a dataset as of `rayface convert`. Its images cannot be read, because all samples have label 0.
        selection: the same samples and labels as a selection of the dataset, whose images can be read.
    """

    dataset: Path
    selection: Path


def simulate(folder: Path, size: Simulated, *, seed: int = 0) -> SimulatedFolders:
    """Write a simulated dataset, shuffled, with one small image for all samples.

    Raises:
        ValueError: numbers that no dataset has.
    """
    size.check()
    folders = SimulatedFolders(dataset=folder / "dataset", selection=folder / "selection")
    for path in (folders.dataset, folders.selection):
        path.mkdir(parents=True)
    bounds = np.linspace(0, size.images, size.shards + 1).astype(np.int64)
    entries, sample_bytes = _write_shards(folders.dataset, np.diff(bounds).tolist())
    counts = np.zeros(size.identities, np.int64)
    random = np.random.default_rng(seed)
    schema = INDEX_SCHEMA.append(pa.field(SOURCE_LABEL, pa.int32()))
    with pq.ParquetWriter(folders.dataset / INDEX, schema) as writer, phase("write index", parts=size.shards) as done:
        for number in range(size.shards):
            rows = np.arange(bounds[number], bounds[number + 1])
            # Every identity has an image; further images are of identities drawn at random.
            labels = np.where(rows < size.identities, rows, random.integers(size.identities, size=len(rows)))
            counts += np.bincount(labels, minlength=size.identities)
            writer.write_table(pa.table(list(_columns(rows, number, labels, sample_bytes)), schema=schema))
            done.advance()
    os.link(folders.dataset / INDEX, folders.selection / INDEX)
    names = [f"id{label:07d}" for label in range(size.identities)]
    for path in (folders.dataset, folders.selection):
        (path / IDENTITIES).write_bytes(identities_file(names, counts))
    _write_manifests(folders, size, entries)
    return folders


def _write_shards(folder: Path, counts: list[int]) -> tuple[list[ShardEntry], int]:
    """Write one tar with the samples of the largest shard and link it to all names; return bytes of a sample too."""
    picture = np.full((_SIZE, _SIZE, 3), 127, np.uint8)
    cv2.circle(picture, (_SIZE // 2, _SIZE // 2), _SIZE // 3, (180, 160, 140), -1)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    sample_bytes = len(encode_sample(f"{0:0{_KEY_DIGITS}d}", 0, jpeg))
    first = folder / shard_name(0)
    with first.open("wb") as stream:
        for row in range(max(counts)):
            stream.write(encode_sample(f"{row:0{_KEY_DIGITS}d}", 0, jpeg))
        stream.write(end_of_archive(stream.tell()))
    num_bytes, entries = first.stat().st_size, []
    for number, count in enumerate(counts):
        if number:
            os.link(first, folder / shard_name(number))
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        entries.append(ShardEntry(path=shard_name(number), num_images=count, num_bytes=num_bytes, sha256=digest))
    return entries, sample_bytes


def _columns(rows: np.ndarray, number: int, labels: np.ndarray, sample_bytes: int) -> Iterator[pa.Array]:
    yield pc.utf8_lpad(pc.cast(pa.array(rows), pa.string()), _KEY_DIGITS, "0")
    yield pa.array(np.full(len(rows), number, np.int32))
    yield pa.array((rows - rows[0]) * sample_bytes)
    yield pa.array(np.full(len(rows), sample_bytes, np.int32))
    yield pa.array(labels.astype(np.int32))
    yield pa.array(np.zeros(len(rows), np.int32))


def _write_manifests(folders: SimulatedFolders, size: Simulated, entries: list[ShardEntry]) -> None:
    manifest = Manifest(
        name="simulated",
        num_classes=size.identities,
        num_images=size.images,
        image_size=(_SIZE, _SIZE),
        licence="none",
        source="simulated",
        shards=entries,
    )
    (folders.dataset / MANIFEST).write_bytes(manifest.to_json())
    paths = [entry.model_copy(update={"path": str(folders.dataset.absolute() / entry.path)}) for entry in entries]
    selection = manifest.model_copy(
        update={"parent": Parent(path=str(folders.dataset)), "selection": "simulated", "shards": paths}
    )
    (folders.selection / MANIFEST).write_bytes(selection.to_json())
