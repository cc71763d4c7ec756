"""Clustering on a real Ray: tasks find their inputs, and the labels are those of a single process."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface import config as configs
from rayface.curate.cluster.cluster import cluster
from rayface.curate.cluster.methods import METHODS
from rayface.curate.cluster.neighbours import nearest
from rayface.embedding.part_file import write_part


@pytest.mark.usefixtures("local_ray")
def test_cluster_in_tasks_finds_what_one_process_does(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(10), 12))
    vectors = random.standard_normal((10, 32))[labels] + 0.8 * random.standard_normal((120, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    (tmp_path / "emb").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(120), 3)):
        batch = ([f"k{row:03d}" for row in rows], labels[rows], vectors[rows])
        write_part(str(tmp_path / "emb" / f"{part}.parquet"), [batch], size=32, dtype="fp32", note={})
    keys = {"embeddings": str(tmp_path / "emb"), "out": str(tmp_path / "out"), "threshold": 0.4, "block_size": 4096}
    config = configs.load(overrides={f"clustering.{key}": str(value) for key, value in keys.items()})
    result = cluster(configs.with_overrides(config, {"tracking.enabled": False}))
    found = pq.read_table(tmp_path / "out" / "labels.parquet")["cluster"].to_numpy()
    alone = METHODS["cohesive"](vectors, nearest(vectors, 40), 0.4)
    assert result.counts.images == 120
    assert len({*zip(found[found >= 0].tolist(), alone[found >= 0].tolist(), strict=True)}) == result.counts.clusters
