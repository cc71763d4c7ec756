"""A dataset whose keys need the names of directory and shard, and embeddings that say which image each is of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from rayface.config import EmbedConfig
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.tar import encode_member, end_of_archive
from rayface.embedding import shard_embedder
from rayface.embedding.embedder import Embedder
from rayface.embedding.shard_embedder import EmbedJob, ShardEmbedder, shard_work
from rayface.models.embedded import Embedded

KEYS = [f"{folder}/{shard}.tar/{k}" for folder in "ab" for shard in "01" for k in range(3)]


def grey(colour: int) -> bytes:
    """Return a flat image."""
    return simplejpeg.encode_jpeg(np.full((32, 32, 3), colour, np.uint8), quality=95)


def keyed_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Two directories of two tars; each tar counts from 0 and holds three flat images; row i has the grey 10 * i."""
    monkeypatch.setenv("RAYFACE_CACHE", str(folder / "cache"))
    for number in range(4):
        path = folder / "ab"[number // 2] / f"{number % 2}.tar"
        path.parent.mkdir(exist_ok=True)
        data = b"".join(
            encode_member(f"{k}.jpg", grey(30 * number + 10 * k)) + encode_member(f"{k}.cls", b"%d" % k)
            for k in range(3)
        )
        path.write_bytes(data + end_of_archive(len(data)))
    return open_dataset([folder / "a", folder / "b"], join="labels")


def embed_keyed(dataset: Dataset, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write embeddings (row, 1) as an actor does; returns their folder."""

    def rows(images: Any) -> Any:
        found = images[:, 8, 8, 0].astype(np.float32).round(-1) / 10
        return Embedded(np.stack([found, np.ones_like(found)], axis=1), 2 * found)

    model = Embedder(function=rows, image_size=16, embedding_size=2, digest="x")
    monkeypatch.setattr(shard_embedder, "load_embedder", lambda *args, **kwargs: model)
    out.mkdir()
    facts = {"flip": True, "precision": "fp32", "dtype": "fp32", "embedding_size": 2, "image_size": 16}
    job = EmbedJob(model_sha256="x", dataset_digest="d", **facts)
    actor = ShardEmbedder(EmbedConfig(model="m", dtype="fp32"), str(out), job, threads=1, device="cpu")
    for work in shard_work(dataset, range(len(dataset.shards))):
        actor(work)
    return out
