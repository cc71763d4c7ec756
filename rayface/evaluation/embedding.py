"""Embeddings of a protocol's images: given, cached, or by the model; large datasets are embedded by a job on Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayface.arrays import row_norms
from rayface.config import Config, EmbedConfig
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.embedding.part_file import part_note
from rayface.embedding.rows import read_labels, read_norms, read_rows
from rayface.evaluation.embedding_cache import EmbeddingCache
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.protocol import EvaluationProtocol
from rayface.machine import keep_freed_memory
from rayface.models.embedded import Embedded
from rayface.models.forward import embed_with_norms
from rayface.models.model_files import LoadedModel, load_model
from rayface.progress import phase
from rayface.storage import DataError

logger = logging.getLogger(__name__)
_BLOCK = 1024  # images read at a time, while the block before is embedded
_JOB_IMAGES = 20_000  # below this, starting Ray takes longer than it saves


class GivenEmbeddings:
    """Embeddings of evaluate.embeddings, found by key."""

    def __init__(self, path: str) -> None:
        self._path, self._embeddings = path, open_embeddings(path)
        self.image_size, self.weights = 112, self._embeddings.model  # the size of the report's pictures
        self.embedding_size = self._embeddings.size

    def __call__(self, name: str, protocol: EvaluationProtocol) -> Embedded:
        """Return the embeddings of a protocol's images, of length 1; 0 for a key that is missing.

        Raises:
            DataError: no key is found.
        """
        assert protocol.source is not None  # checked when the protocols are opened
        found = rows_by_key(self._embeddings, protocol.source)
        if not found.embeddings.any():
            raise DataError(
                f"evaluate.embeddings: {self._path}: has no key of {', '.join(protocol.source.dataset.roots)}: give "
                "the embeddings of this dataset"
            )
        return found


class ModelEmbeddings:
    """Embeddings by evaluate.model; those of a dataset's images are cached."""

    def __init__(self, config: Config) -> None:
        self._config, given = config, config.evaluate
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._device == "cpu":
            keep_freed_memory()
        self._loaded: LoadedModel = load_model(str(given.model), backbone=given.backbone, device=self._device)
        self._module: nn.Module = self._loaded.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_size, self.weights = self._loaded.info.image_size, self._loaded.weights_sha256
        self.embedding_size = self._loaded.info.embedding_size

    def __call__(self, name: str, protocol: EvaluationProtocol) -> Embedded:
        """Return the embeddings of a protocol's images, of length 1; 0 for an image that is not readable.

        Raises:
            ValueError: an image cannot be read; one line.
        """
        every, source = np.arange(protocol.num_images), protocol.source
        if not protocol.digest:
            return self._embedded(protocol, every)
        settings, rows = self._config.evaluate, every if source is None else source.rows
        cache = EmbeddingCache(
            model=self._loaded.info.sha256, dataset=protocol.digest, flip=settings.flip, folder=settings.cache
        )
        is_known, known = cache.load(rows)
        if source is not None and source.is_whole and np.count_nonzero(~is_known) >= _JOB_IMAGES:
            found = self._by_job(protocol, source, cache.job_folder)
            cache.trim()
            return found
        if not is_known.all():
            if is_known.any():
                logger.info("embed images: %d of %d are in the cache", np.count_nonzero(is_known), len(rows))
            missing = every[~is_known]
            new = self._embedded(protocol, missing)
            if np.isfinite(new.embeddings).all():
                cache.store(rows[missing], new)
            known = _merged(is_known, known, new)
        assert known is not None
        return known

    def _embedded(self, protocol: EvaluationProtocol, places: NDArray[np.int64]) -> Embedded:
        size = self._config.evaluate.batch_size
        with phase("embed images", rows=len(places)) as current:
            return embed_protocol(
                protocol,
                self._module,
                places,
                batch_size=size,
                device=self._device,
                flip=self._config.evaluate.flip,
                done=lambda: current.advance_rows(size),
            )

    def _by_job(self, protocol: EvaluationProtocol, images: ImageRows, folder: str) -> Embedded:
        """Embed the dataset by the job of `rayface embed`, which resumes and uses all of the cluster.

        Its finished parts lack the images that it could not read; these are read again, as they may be repaired.
        """
        # Not above: it imports Ray, and most sets are embedded without.
        from rayface.embedding.embed import embed

        given = self._config.evaluate
        job = EmbedConfig(
            model=given.model,
            backbone=given.backbone,
            data=images.dataset.roots,
            out=folder,
            flip=given.flip,
            dtype="fp32",
        )
        config = replace(
            self._config,
            embed=job,
            data=replace(self._config.data, join=images.dataset.join),
            tracking=replace(self._config.tracking, enabled=False),
        )
        try:
            embed(config)
        except DataError:  # perhaps of too many corrupt images
            _delete_parts_with_faults(folder)
            raise
        found = rows_by_key(open_embeddings(folder), images)
        unread = np.flatnonzero(~found.embeddings.any(axis=1))
        if len(unread):
            for column, new in zip(found, self._embedded(protocol, unread), strict=True):
                column[unread] = new
        return found


def _delete_parts_with_faults(folder: str) -> None:
    for path in Path(folder).glob("*.parquet"):
        if part_note(str(path))[1]["faults"]:
            path.unlink()


def embed_protocol(
    protocol: EvaluationProtocol,
    model: nn.Module,
    places: NDArray[np.int64],
    *,
    batch_size: int,
    device: str | torch.device,
    flip: bool = True,
    bf16: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Embedded:
    """Embed images of a protocol; the next block is read while one is embedded. Memory: two blocks of images.

    Args:
        places: (n,) numbers of images, in rising order.
        batch_size, device, flip, done: see `embed_with_norms`.
        bf16: compute in bfloat16.

    Returns:
        Embeddings (n, D) of length 1, 0 for an image that is not readable, and norms (n,).
    """
    parts = []
    for images, readable in _blocks(protocol, places if len(places) else np.zeros(1, np.int64)):
        found = embed_with_norms(
            model, images, batch_size=batch_size, device=device, flip=flip, amp="bf16" if bf16 else None, done=done
        )
        found.embeddings[~readable] = 0
        parts.append(found)
    return Embedded(*(np.concatenate(column)[: len(places)] for column in zip(*parts, strict=True)))


def _blocks(
    protocol: EvaluationProtocol, places: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yield images and whether they are readable, in blocks of consecutive places."""
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    bounds = sorted({0, len(places), *ends.tolist(), *range(0, len(places), _BLOCK)})
    ranges = [(int(places[first]), int(places[last - 1]) + 1) for first, last in pairwise(bounds)]
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(protocol.read_readable, *each) for each in ranges[:1]]
        for following in [*ranges[1:], None]:
            current = waiting.pop().result()
            if following is not None:
                waiting.append(reader.submit(protocol.read_readable, *following))
            yield current


def _merged(is_known: NDArray[np.bool_], known: Embedded | None, new: Embedded) -> Embedded:
    if known is None:
        return new
    columns = []
    for old, added in zip(known, new, strict=True):
        column = np.empty((len(is_known), *added.shape[1:]), np.float32)
        column[is_known], column[~is_known] = old, added
        columns.append(column)
    return Embedded(*columns)


def rows_by_key(embeddings: Embeddings, images: ImageRows) -> Embedded:
    """Return the embeddings of images by their keys, normalised; 0 for a key that is missing, norms NaN if unknown.

    Memory: the embeddings of the images, and of one file.

    Raises:
        DataError: a key has two embeddings, or a row is not valid; one line.
    """
    place_of = np.full(images.dataset.num_images + 1, -1, np.int64)  # the last one: a key that is not in the dataset
    unique, first, inverse = np.unique(images.rows, return_index=True, return_inverse=True)
    place_of[unique] = first
    keys = (batch for file in embeddings.files for batch, _ in read_labels(file))
    places = place_of[images.dataset.find(keys)]
    _refuse_repeated(places[places >= 0], images)
    found, done = np.zeros((len(images), embeddings.size), np.float32), 0
    norms = np.full(len(images), np.nan, np.float32)
    with phase("read embeddings", parts=len(embeddings.files), rows=embeddings.num_rows) as current:
        for file in embeddings.files:
            own = places[done : done + file.num_rows]
            done += file.num_rows
            if (own >= 0).any():
                units = read_rows(file.path, 0, file.num_rows).embeddings[own >= 0].astype(np.float32)
                found[own[own >= 0]] = units / row_norms(units)[:, None]
                lengths = read_norms(file)
                if lengths is not None:
                    norms[own[own >= 0]] = lengths[own >= 0]
            current.advance()
    listed_again = np.flatnonzero(first[inverse] != np.arange(len(images)))
    for column in (found, norms):
        column[listed_again] = column[first[inverse[listed_again]]]
    return Embedded(found, norms)


def _refuse_repeated(places: NDArray[np.int64], images: ImageRows) -> None:
    counts = np.bincount(places)
    if repeated := np.flatnonzero(counts > 1).tolist():
        key = images.dataset.keys()[images.rows[repeated[0]]]
        raise DataError(
            f"embeddings of {key}: there are {counts[repeated[0]]} in this set: must be one per key; {len(repeated)} "
            "keys are repeated"
        )
