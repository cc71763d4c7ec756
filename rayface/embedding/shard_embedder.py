"""Embedding actor: read, decode, embed and write one shard after another."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.config import EmbedConfig
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_images
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.random_access import locate_member, read_samples
from rayface.data.shards.samples import Fault, SampleIndex, ShardRows
from rayface.embedding.embedder import load_embedder
from rayface.embedding.part_file import part_note, write_part
from rayface.storage import DataError, join

CHUNK = 512  # images read and decoded at a time, and rows per row group


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """Fingerprint of an embedding job: model, data and settings; a part is reused only if it is equal.

    Attributes:
        weights_sha256: sha256 of the weights that an ONNX file was exported from, which its own digest implies.
        key_prefixes: digest of the prefixes of the dataset's keys, which are not part of the dataset's digest; None
            without prefixes.
    """

    model_sha256: str
    dataset_digest: str
    embedding_size: int
    image_size: int
    flip: bool
    precision: str
    dtype: str
    weights_sha256: str | None = None
    key_prefixes: str | None = None

    @classmethod
    def of(cls, settings: EmbedConfig, dataset: Dataset) -> EmbedJob:
        """Return the job of embedding a dataset; loads the model for its digest and sizes."""
        embedder = load_embedder(str(settings.model), backbone=settings.backbone, precision=settings.precision)
        prefixes = None
        if any(dataset.key_prefixes):
            prefixes = hashlib.sha256("\n".join(dataset.key_prefixes).encode()).hexdigest()
        return cls(
            model_sha256=embedder.digest,
            dataset_digest=dataset.digest,
            embedding_size=embedder.embedding_size,
            image_size=embedder.image_size,
            flip=settings.flip,
            precision=settings.precision,
            dtype=settings.dtype,
            weights_sha256=embedder.weights,
            key_prefixes=prefixes,
        )

    def facts(self) -> dict[str, object]:
        """Return the fields of the fingerprint that are set, as JSON types."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "weights_sha256"}

    @property
    def id(self) -> str:
        """Digest of the fields."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class EmbeddedShard:
    """An embedded shard: number of rows written, and faults of samples that could not be embedded."""

    number: int
    rows: int
    faults: tuple[Fault, ...]


def part_name(number: int) -> str:
    """Return the name of a shard's embedding file."""
    return f"part-{number:06d}.parquet"


def read_embedded(root: str, number: int, dataset: Dataset, job: EmbedJob) -> EmbeddedShard:
    """Return an embedded shard of an earlier run.

    Raises:
        DataError: the file belongs to another shard or job.
    """
    path, shard = join(root, part_name(number)), dataset.shards[number]
    rows, note = part_note(path)
    if rows + len(note["faults"]) != shard.num_images or note["job"] != job.id:
        raise DataError(f"{path}: is not of {shard.path}: delete it and run again")
    return EmbeddedShard(number=number, rows=rows, faults=tuple(Fault(**fault) for fault in note["faults"]))


class ShardWork(NamedTuple):
    """A shard to embed; `samples` are its own, `key_prefix` turns its keys into those of the dataset."""

    number: int
    path: str
    samples: SampleIndex
    key_prefix: str


class ShardPlace(NamedTuple):
    """A shard to embed as it is sent to a process that has the index: `rows` of the index are its samples."""

    number: int
    path: str
    rows: slice | np.ndarray
    key_prefix: str

    def work(self, index: SampleIndex) -> ShardWork:
        """Return the shard with its samples."""
        samples = index.select(self.rows)
        samples = replace(samples, shard=np.zeros(len(samples), np.int32))
        return ShardWork(self.number, self.path, samples, self.key_prefix)


def shard_places(dataset: Dataset, numbers: Iterable[int]) -> Iterator[ShardPlace]:
    """Yield the places of some shards, by number; makes one pass over the index."""
    rows = ShardRows(dataset.index.shard, len(dataset.shards))
    for number in numbers:
        yield ShardPlace(number, dataset.shards[number].path, rows[number], dataset.key_prefixes[number])


def shard_work(dataset: Dataset, numbers: Iterable[int]) -> Iterator[ShardWork]:
    """Yield the work of some shards, by number; makes one pass over the index."""
    return (place.work(dataset.index) for place in shard_places(dataset, numbers))


class ShardEmbedder:
    """Actor that holds the model and embeds one shard after another.

    Args:
        count: called with the number of images that were read since its last call.
    """

    def __init__(
        self,
        settings: EmbedConfig,
        root: str,
        job: EmbedJob,
        threads: int,
        device: str,
        count: Callable[[int], None] = lambda rows: None,
    ) -> None:
        torch.set_num_threads(threads)
        self._count = count
        self.root, self.job, self.threads, self.dtype = root, job, threads, settings.dtype
        self.embedder = load_embedder(
            str(settings.model),
            backbone=settings.backbone,
            device=device,
            flip=settings.flip,
            precision=settings.precision,
        )
        if self.embedder.digest != job.model_sha256:
            raise ValueError(f"model {settings.model}: differs on a node of the cluster: put it on a shared disk")

    def __call__(self, work: ShardWork) -> EmbeddedShard:
        faults: list[Fault] = []
        note: dict[str, object] = {"job": self.job.id, "faults": []}

        def embedded() -> Iterator[tuple[list[str], Ints, NDArray[np.float32], NDArray[np.float32]]]:
            for chunk in read_images(work.path, work.samples, self.embedder.image_size, self.threads):
                faults.extend(chunk.faults)
                note["faults"] = [asdict(fault) for fault in faults]
                if chunk.keys:
                    keys = [work.key_prefix + key for key in chunk.keys]
                    yield keys, chunk.labels, *self.embedder.with_norms(chunk.images)
                self._count(len(chunk.keys) + len(chunk.faults))

        path = join(self.root, part_name(work.number))
        rows = write_part(path, embedded(), size=self.embedder.embedding_size, dtype=self.dtype, note=note, norms=True)
        return EmbeddedShard(number=work.number, rows=rows, faults=tuple(faults))


def is_repaired(work: ShardWork, faults: Iterable[Fault], image_size: int) -> bool:
    """Return whether an image that an embedded shard lacks can be read now."""
    starts, ends = work.samples.offset, work.samples.offset + work.samples.num_bytes
    lost = [
        np.flatnonzero((starts <= fault.offset) & (fault.offset < ends)) for fault in faults if fault.offset is not None
    ]
    samples = work.samples.select(np.unique(np.concatenate([np.arange(0), *lost])))
    return any(chunk.keys for chunk in read_images(work.path, samples, image_size, threads=1))


class Chunk(NamedTuple):
    """Decoded neighbours of a shard; images that cannot be decoded are skipped and listed in `faults`."""

    keys: list[str]  # as the shard has them
    labels: Ints  # (n,)
    images: NDArray[np.uint8]  # (n, size, size, 3) RGB
    faults: list[Fault]


def read_images(shard: str, samples: SampleIndex, image_size: int, threads: int) -> Iterator[Chunk]:
    """Read and decode samples of a shard in order; each thread prefetches one chunk."""
    waiting: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), CHUNK):
            part = samples.select(slice(start, start + CHUNK))
            waiting.append(pool.submit(_read_chunk, shard, part, image_size))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_chunk(shard: str, samples: SampleIndex, image_size: int) -> Chunk:
    found = read_samples([shard], samples)
    images, bad = decode_images([b"" if isinstance(s, Fault) else s.jpeg for s in found], image_size)
    keys, rows, faults = [], [], []
    for row, sample in enumerate(found):
        if isinstance(sample, Fault):
            faults.append(sample)
        elif row in bad:
            member, offset = locate_member(shard, sample.offset, sample.num_bytes, IMAGE_SUFFIXES)
            faults.append(Fault(shard=shard, member=member, offset=offset, reason=bad[row]))
        else:
            keys.append(sample.key)
            rows.append(row)
    labels = samples.label[rows].astype(np.int64)
    return Chunk(keys, labels, images if len(rows) == len(images) else images[rows], faults)
