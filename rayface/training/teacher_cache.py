"""A teacher's embeddings of the training data: embedded once by `rayface embed`, then looked up by sample.

The folder holds the parquet files of that job and the same rows as one array in the order of the dataset, which workers
memory-map.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.config import Config, EmbedConfig
from rayface.data.dataset import Dataset
from rayface.data.keys import read_keys
from rayface.files import publish, write_text
from rayface.storage import DataError
from rayface.storage.parquet import read_table

BY_SAMPLE = "by_sample.npy"  # (N, D) float16, NaN for corrupt samples
BY_CLASS = "by_class.npy"  # (C, D) float16, mean directions of length 1, NaN for classes without samples
_LABELS = "by_class.labels"  # digest of the labels whose means BY_CLASS holds: data.join numbers the same images anew


def fill_cache(config: Config, dataset: Dataset) -> None:
    """Embed the training data with the teacher unless the cache is complete; call it inside a Ray session.

    Embeddings are those of the unaugmented image plus its mirror image, as in verification; they are the target of
    every augmented view of the image. A cache of another teacher or of other data is refused.

    Raises:
        ValueError: bad input, one line.
    """
    from rayface.embedding.embed import embed

    train = config.train
    if train.teacher is None or train.teacher_cache is None:
        return
    teacher = EmbedConfig(
        model=train.teacher, backbone=train.teacher_backbone, data=config.data.train, out=train.teacher_cache
    )
    manifest = embed(replace(config, embed=teacher)).manifest
    folder = Path(train.teacher_cache)
    shape = (len(dataset.index), int(manifest["embedding_size"]))
    if not (folder / BY_SAMPLE).exists():
        _write(folder / BY_SAMPLE, shape, lambda out: _order(folder, manifest, dataset, out))
    if train.distillation == "center":
        _fill_by_class(folder, dataset, shape[1])


def _fill_by_class(folder: Path, dataset: Dataset, size: int) -> None:
    """Write the means of the classes unless those of the same labels are there."""
    labels, note = dataset.index.label, folder / _LABELS
    digest = hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()
    if (folder / BY_CLASS).exists() and note.exists() and note.read_text() == digest:
        return
    note.unlink(missing_ok=True)
    samples = by_sample(folder, len(labels))
    _write(folder / BY_CLASS, (dataset.num_classes, size), lambda out: _mean(samples, labels, out))
    write_text(note, digest)


def by_sample(folder: Path, num_samples: int) -> NDArray[np.float16]:
    """Memory-map the targets (N, D) of a cache.

    Raises:
        DataError: the number of samples differs.
    """
    return _mapped(folder / BY_SAMPLE, num_samples)


def by_class(folder: Path, num_classes: int) -> NDArray[np.float16]:
    """Memory-map the targets (C, D) of identities.

    Raises:
        DataError: the number of classes differs.
    """
    return _mapped(folder / BY_CLASS, num_classes)


def _mapped(path: Path, num_rows: int) -> NDArray[np.float16]:
    targets: NDArray[np.float16] = np.load(path, mmap_mode="r")
    if len(targets) != num_rows:
        raise DataError(f"train.teacher_cache: {path} has {len(targets)} rows, the data {num_rows}: delete the file")
    return targets


def _write(path: Path, shape: tuple[int, int], fill: Callable[[np.ndarray], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    try:
        fill(out)
        out.flush()
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _order(folder: Path, manifest: Mapping[str, Any], dataset: Dataset, out: np.ndarray) -> None:
    """Write the rows of the parquet files in the order of the dataset, by key; one shard at a time."""
    out[:] = np.nan
    paths = [folder / part["path"] for part in manifest["parts"]]
    places = dataset.find(itertools.chain.from_iterable(read_keys(str(path)) for path in paths))
    done = 0
    for path in paths:
        values = read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        own = places[done : done + len(values)]
        done += len(values)
        if (own < 0).any():
            raise DataError(f"train.teacher_cache: {path} has keys that are not in the data")
        out[own] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(own), -1)


def _mean(samples: np.ndarray, labels: np.ndarray, out: np.ndarray) -> None:
    """Write the direction of each class's mean; memory: one float64 sum per class."""
    sums = np.zeros(out.shape)
    for start in range(0, len(samples), 65536):
        rows = samples[start : start + 65536].astype(np.float64)
        known = np.isfinite(rows).all(1)
        np.add.at(sums, labels[start : start + 65536][known], rows[known])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    out[:] = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), np.nan)
