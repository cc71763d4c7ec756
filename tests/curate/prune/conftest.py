"""A selector of drawn identities whose tasks run in the test's own process, and a pruned set of drawn images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.arrays import group_offsets
from rayface.config import CleanConfig
from rayface.curate.clean.clean import clean
from rayface.curate.face_nms import suppress_many
from rayface.curate.partitions import partition_by_identity
from rayface.curate.prune.selection import Selector
from rayface.curate.work_files import WorkPath
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.synth import synthesize
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.part_file import write_part

MakeSelector = Callable[..., Selector]


@pytest.fixture
def make_selector(tmp_path: Path, in_process: None, put_embeddings: Callable[..., Embeddings]) -> MakeSelector:
    """A function of (sizes, images in a partition, seed, embedding size) -> selector of drawn identities."""

    def make(sizes: Sequence[int], block: int, *, seed: int = 0, size: int = 8) -> Selector:
        random = np.random.default_rng(0)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        vectors = random.standard_normal((len(sizes), size))[labels]
        vectors += random.standard_normal(vectors.shape) * random.uniform(0.4, 1.2, (len(labels), 1))
        found = partition_by_identity(
            put_embeddings(labels, vectors), WorkPath(root=tmp_path / "runs"), 4 * size * block
        )
        return Selector(found, WorkPath(root=tmp_path / "decisions"), seed=seed)

    return make


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """8 drawn identities of 6 images, embedded by their colours, and what Face-NMS keeps of them."""
    root = tmp_path_factory.mktemp("curation")
    synthesize(root / "faces", identities=8, images_per_identity=6, seed=0, image_size=48, processes=1)
    dataset = open_dataset(root / "faces")
    images = [decode_image(sample.jpeg, 48) for sample in read_samples(dataset.shard_paths(), dataset.index)]
    values = np.stack([image[::8, ::8].ravel() for image in images]).astype(np.float32)
    values -= values.mean(axis=0)
    order = np.lexsort((dataset.keys(), dataset.index.label))
    keys, labels, values = np.array(dataset.keys())[order], dataset.index.label[order].astype(np.int64), values[order]
    mixed = np.random.default_rng(0).permutation(len(keys))
    (root / "emb").mkdir()
    for part, rows in enumerate(np.array_split(mixed, 3)):  # shards are not by identity
        batches = [(keys[rows].tolist(), labels[rows], values[rows])]
        write_part(str(root / f"emb/{part}.parquet"), batches, size=values.shape[1], dtype="fp16", note={})
    found = suppress_many(values, group_offsets(labels), 0.6)
    by = [None if k < 0 else str(keys[k]) for k in found.suppressed_by]
    table = {"key": keys, "label": labels, "kept": found.kept, "score": found.score, "suppressed_by": by}
    reason = np.where(found.kept, "kept", "too alike")
    pq.write_table(pa.table({**table, "reason": reason}), root / "core_set.parquet", row_group_size=20)
    options = CleanConfig(outliers=0.5, duplicates=0.1, conflicts=0.5, bytes=True, above=0.9, drop=("outliers",))
    theirs, digests = labels == 3, np.r_[1, 1, np.arange(2, len(keys))]
    test = {"test_embeddings": values[theirs], "test_labels": labels[theirs]}
    report = clean(values, labels, pa.array(keys), options, digests=digests, **test)
    return {
        "root": root,
        "dataset": dataset,
        "keys": keys,
        "labels": labels,
        "values": values,
        "kept": found.kept,
        "by": found.suppressed_by,
        "found": report,
    }
