"""Report of clusters: its table, the clusters and doubtful images that it shows, with and without pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.report import write_report
from rayface.curate.cluster.result import ClusterCounts, ClusterResult
from rayface.curate.prune.result import JobFacts
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize

CLUSTERS = np.array([0, 0, 0, 1, 1, -1, 2, 2])
CONFIDENCE = np.array([0.9, 0.8, 0.1, 0.7, 0.6, 0, 0.5, -0.4], np.float32)


@pytest.fixture
def result() -> ClusterResult:
    return ClusterResult(
        method="cohesive",
        threshold=0.41,
        threshold_from="estimate",
        base=0.02,
        counts=ClusterCounts(images=8, clusters=3, noise=1, largest=3),
        scores=cluster_scores([0, 0, 0, 1, 1, 1, 2, 2], CLUSTERS),
        stage_seconds={},
        job=JobFacts(seconds=0, embeddings="emb", config={}, created_by="rayface"),
    )


def test_report_shows_counts_scores_and_pictures(result: ClusterResult, tmp_path: Path) -> None:
    synthesize(tmp_path / "faces", identities=2, images_per_identity=4, seed=0, image_size=32, processes=1)
    dataset = open_dataset(tmp_path / "faces")
    write_report(
        tmp_path, result, pa.chunked_array([dataset.keys()]), CLUSTERS, CONFIDENCE, dataset, title=tmp_path.name
    )
    page = (tmp_path / "report.html").read_text()
    for text in (
        "pairwise F against the labels",
        "0.4100 (estimate",
        "3, the largest of 3 images",
        "cluster 2: 2 images",
    ):
        assert text in page
    doubts = page[page.index("Least confident images") :]
    assert doubts.index("-0.40") < doubts.index("0.10")
    assert page.count("data:image/jpeg") == 7 + 3 * 3 + 4 * 2  # clusters; each image beside its others
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"sizes.png", "confidence.png"}


def test_report_of_noise_alone_has_no_pictures(result: ClusterResult, tmp_path: Path) -> None:
    keys = pa.chunked_array([["a", "b"]])
    write_report(tmp_path, result, keys, np.array([-1, -1]), np.zeros(2, np.float32), None, title="out")
    assert "cluster 0" not in (tmp_path / "report.html").read_text()
