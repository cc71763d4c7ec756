"""A cluster job, its tasks in the test's own process: what it leaves, and what it finds again or refuses."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from rayface import config as configs
from rayface.curate.cluster import cluster as module
from rayface.curate.cluster import unit_vectors
from rayface.curate.cluster.cluster import cluster
from rayface.curate.cluster.methods import METHODS
from rayface.curate.cluster.result import ClusterResult
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.embedding.part_file import write_part
from rayface.job_folder import exclusive_job_folder
from rayface.storage import DataError
from tests.curate.interrupted_tracking import check_tracked_once_when_run_again

QUIET = configs.load(overrides=["tracking.enabled=false"])
People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]
Job = Callable[..., ClusterResult]


@pytest.fixture
def job(tmp_path: Path, people: People, put_embeddings: Any, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A function of config keys -> the result of clustering 12 persons of 10 images into tmp_path/out, without Ray."""

    def map_unordered(work: Callable[[Any], Any], parts: Sequence[Any], *phase: Any, **of: Any) -> Iterator[Any]:
        yield from map(work, reversed(parts))

    monkeypatch.setattr(unit_vectors, "map_unordered", map_unordered)
    for name in ("ray_session", "quiet_data"):
        monkeypatch.setattr(module, name, lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(module, "is_cluster", lambda address: False)
    monkeypatch.setattr(module, "write_report", lambda root, *given, **more: (root / "report.html").touch())
    vectors, labels = people(12, 10, spread=0.6, size=64)
    put_embeddings(labels, 3 * vectors)

    def job(**keys: Any) -> ClusterResult:
        own = {"embeddings": str(tmp_path / "emb"), "out": str(tmp_path / "out"), "block_size": 4 * 64 * 50, **keys}
        return cluster(configs.with_overrides(QUIET, {f"clustering.{key}": value for key, value in own.items()}))

    return job


@pytest.mark.parametrize("method", [*METHODS, "ogmc"])
def test_cluster_finds_persons_and_writes_what_it_found(job: Job, tmp_path: Path, method: str) -> None:
    threshold = 0.55 if method == "components" else 0.4
    result = job(method=method, threshold=threshold)
    assert result.scores is not None
    assert result.scores.pairwise_f > 0.98
    assert (result.method, result.threshold, result.threshold_from) == (method, threshold, "threshold")
    table = pq.read_table(tmp_path / "out" / "labels.parquet")
    assert table.column_names == ["key", "cluster", "confidence"]
    assert table["key"].to_pylist() == [f"k{row:03d}" for row in range(120)]
    clusters, confidence = table["cluster"].to_numpy(), table["confidence"].to_numpy()
    assert (result.counts.images, result.counts.clusters) == (120, clusters.max() + 1)
    firsts = [int(np.flatnonzero(clusters == number)[0]) for number in range(result.counts.clusters)]
    assert firsts == sorted(firsts)
    assert confidence[clusters >= 0].mean() > 0.3
    assert (confidence[clusters < 0] == 0).all()
    written = json.loads((tmp_path / "out" / "cluster.json").read_text())
    assert written["scores"]["pairwise_f"] == result.scores.pairwise_f
    assert not (tmp_path / "out" / ".work").exists()


def test_cluster_without_threshold_estimates_one(job: Job) -> None:
    result = job()
    assert result.threshold_from == "estimate"
    assert result.scores is not None
    assert result.scores.pairwise_f > 0.9


def test_cluster_by_ogmc_at_a_threshold_searches_no_neighbours(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_neighbours", None)  # would fail
    assert job(method="ogmc", threshold=0.4).counts.clusters == 12


def test_cluster_calibrates_on_labelled_embeddings(
    job: Job, people: People, put_embeddings: Any, tmp_path: Path
) -> None:
    vectors, labels = people(15, 8, spread=0.6, size=64, seed=3)
    put_embeddings(labels, vectors, "known")
    result = job(calibrate=str(tmp_path / "known"))
    assert result.threshold_from == "calibrate"
    assert result.scores is not None
    assert result.scores.pairwise_f > 0.98


def test_cluster_run_again_returns_the_result_without_a_task(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job(threshold=0.4)
    (tmp_path / "out" / ".work").mkdir()  # as a crash between the two leaves it
    monkeypatch.setattr(module, "write_unit_vectors", None)  # would fail
    second = job(threshold=0.4)
    assert (second.counts, second.scores) == (first.counts, first.scores)
    assert not (tmp_path / "out" / ".work").exists()


@pytest.mark.parametrize(
    ("where", "method"), [("find_neighbours", "cohesive"), ("confidences", "ogmc"), ("write_report", "cohesive")]
)
def test_cluster_interrupted_resumes_and_ends_with_the_same_bytes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, method: str
) -> None:
    job(method=method, threshold=0.4, out=str(tmp_path / "whole"))

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(method=method, threshold=0.4)
    assert any((tmp_path / "out" / ".work" / "vectors").iterdir())
    job(method=method, threshold=0.4)
    labels = [(tmp_path / name / "labels.parquet").read_bytes() for name in ("whole", "out")]
    assert labels[0] == labels[1]


def test_cluster_of_another_setting_in_the_same_folder_is_refused(job: Job) -> None:
    job(threshold=0.4)
    with pytest.raises(DataError, match=r"clustering.out: .*: was started with threshold 0.4, this job has 0.5"):
        job(threshold=0.5)


def test_cluster_beside_another_job_in_one_folder_is_refused(job: Job, tmp_path: Path) -> None:
    with (
        exclusive_job_folder(str(tmp_path / "out"), {}, ".cluster_job.json", key="clustering.out"),
        pytest.raises(DataError, match=r"clustering.out: "),
    ):
        job(threshold=0.4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, "embedding of k003: has NaN or infinity"), (0.0, "embedding of k003: is all zeros")],
)
def test_cluster_of_a_bad_embedding_names_its_key(
    job: Job, people: People, put_embeddings: Any, tmp_path: Path, bad: float, message: str
) -> None:
    vectors, labels = people(4, 5)
    vectors[3] = bad
    put_embeddings(labels, vectors, "bad")
    with pytest.raises(ValueError, match=message):
        job(embeddings=str(tmp_path / "bad"), threshold=0.4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"far": 0.1}, "clustering: far: 0.1: has no effect: must be with assign, or left out"),
        ({"search": "exact", "probes": 8}, "probes: 8: has no effect: must be with search auto or lists, or left out"),
        ({"method": "ogmc", "neighbours": 8}, "neighbours: 8: has no effect: must be without threshold or calibrate, "),
        ({"method": "ogmc", "search": "lists"}, "search: 'lists': has no effect: must be without threshold or cal"),
        (
            {"method": "ogmc", "stream": True, "block_size": 2**20},
            "block_size: 1048576: has no effect: must be without",
        ),
    ],
)
def test_cluster_with_a_setting_of_no_effect_is_refused(given: dict[str, Any], message: str) -> None:
    keys = {f"clustering.{name}": value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        configs.load(overrides={"clustering.threshold": 0.4, **keys})


@pytest.mark.parametrize("key", ["embeddings", "calibrate", "assign"])
def test_cluster_with_a_folder_of_embeddings_that_is_missing_names_its_key(job: Job, tmp_path: Path, key: str) -> None:
    threshold = {} if key == "calibrate" else {"threshold": 0.4}
    with pytest.raises(DataError, match=rf"^clustering\.{key}: .*nowhere: no such folder of embeddings"):
        job(**{**threshold, key: str(tmp_path / "nowhere")})


def test_cluster_of_duplicate_keys_is_one_line(job: Job, tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    batch = (["a", "a"], np.zeros(2, np.int64), np.eye(2, 4))
    write_part(str(tmp_path / "twice" / "0.parquet"), [batch], size=4, dtype="fp32", note={})
    with pytest.raises(DataError, match=r"key: 'a': occurs 2 times"):
        job(embeddings=str(tmp_path / "twice"), threshold=0.4)


@pytest.mark.parametrize("method", [*METHODS, "ogmc"])
def test_cluster_of_duplicate_vectors_puts_them_together(
    job: Job, put_embeddings: Any, tmp_path: Path, method: str
) -> None:
    vectors = np.repeat(np.eye(4, 16), [5, 5, 1, 60], axis=0)
    put_embeddings(np.zeros(71, np.int64), vectors, "same")
    result = job(embeddings=str(tmp_path / "same"), method=method, threshold=0.5)
    assert result.scores is None  # one label: none are known
    clusters = pq.read_table(tmp_path / "out" / "labels.parquet")["cluster"].to_numpy()
    assert clusters[:11].tolist() == [0] * 5 + [1] * 5 + [-1]
    if method not in ("components", "density"):
        assert set(clusters[11:].tolist()) == {2}


def test_cluster_of_one_image_is_noise(job: Job, put_embeddings: Any, tmp_path: Path) -> None:
    put_embeddings(np.zeros(1, np.int64), np.ones((1, 8)), "one")
    result = job(embeddings=str(tmp_path / "one"))
    assert (result.counts.clusters, result.counts.noise) == (0, 1)


def test_cluster_within_labels_splits_two_persons_and_leaves_out_a_stranger(
    job: Job, people: People, put_embeddings: Any, tmp_path: Path
) -> None:
    vectors, persons = people(6, 8, spread=0.6, size=64)
    labels = np.array([0, 0, 1, 2, 3, 4])[persons]  # label 0 holds two persons
    stranger = int(np.flatnonzero(persons == 2)[0])
    labels[stranger] = 4
    put_embeddings(labels, vectors, "mixed")
    result = job(embeddings=str(tmp_path / "mixed"), threshold=0.4, within=True)
    clusters = pq.read_table(tmp_path / "out" / "labels.parquet")["cluster"].to_numpy()
    assert (result.counts.clusters, result.counts.noise) == (6, 1)
    assert clusters[stranger] == -1
    for number in range(6):
        assert len(set(persons[clusters == number].tolist())) == 1


@pytest.mark.parametrize("write_shards", [False, True])
def test_cluster_with_data_writes_a_dataset_labelled_by_clusters(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_shards: bool
) -> None:
    synthesize(tmp_path / "faces", identities=3, images_per_identity=4, seed=0, image_size=32, processes=1)
    dataset = open_dataset(tmp_path / "faces")
    keys = dataset.keys()
    person = (np.arange(12) * 5) % 12 // 5  # other groups than the labels: sizes 5, 5 and 2
    vectors = np.eye(3, 8)[person]
    vectors[0] = np.eye(8)[7]  # alone: noise
    (tmp_path / "known").mkdir()
    batch = (keys, dataset.index.label.astype(np.int64), vectors)
    write_part(str(tmp_path / "known" / "0.parquet"), [batch], size=8, dtype="fp32", note={})
    if write_shards:
        monkeypatch.setattr(
            "rayface.curate.prune.pruned_dataset.map_unordered", lambda work, parts, *name, **of: map(work, parts)
        )
        monkeypatch.setattr("rayface.curate.prune.pruned_dataset.ray", _NoRay)
    result = job(
        embeddings=str(tmp_path / "known"), data=[str(tmp_path / "faces")], threshold=0.5, write_shards=write_shards
    )
    assert result.dataset is not None
    assert (result.dataset.images, result.dataset.classes) == (11, 3)
    written = open_dataset(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "labels.parquet").to_pydict()
    clusters = dict(zip(table["key"], table["cluster"], strict=True))
    assert dict(zip(written.keys(), written.index.label.tolist(), strict=True)) == {
        key: number for key, number in clusters.items() if number >= 0
    }
    assert written.identities == ("cluster-0000000", "cluster-0000001", "cluster-0000002")


class _NoRay:
    """Stands in for Ray's object store."""

    put = get = staticmethod(lambda value: value)


def test_cluster_within_labels_by_ogmc_is_refused(job: Job) -> None:
    with pytest.raises(ValueError, match=r"within: true with method ogmc: must be another method"):
        job(method="ogmc", within=True)


def test_cluster_with_data_that_was_not_embedded_is_refused(job: Job, tmp_path: Path) -> None:
    synthesize(tmp_path / "faces", identities=2, images_per_identity=2, seed=0, image_size=32, processes=1)
    with pytest.raises(DataError, match=r"clustering.data: .*: has no key 'k000'"):
        job(data=[str(tmp_path / "faces")], threshold=0.5)


def test_cluster_searching_lists_tells_its_recall_and_resumes_only_with_the_same_search(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayface.curate.cluster.inverted_lists.map_unordered", unit_vectors.map_unordered)
    result = job(threshold=0.4, search="lists", probes=20)
    assert result.neighbour_recall is not None
    assert result.neighbour_recall > 0.8
    assert result.scores is not None
    assert result.scores.pairwise_f > 0.98
    with pytest.raises(DataError, match=r"was started with probes 20, this job has 21"):
        job(threshold=0.4, search="lists", probes=21)
    with pytest.raises(DataError, match=r"was started with search lists, which this job lacks"):
        job(threshold=0.4)


def test_cluster_of_few_images_searches_exactly(job: Job) -> None:
    assert job(threshold=0.4).neighbour_recall is None


def test_cluster_killed_before_its_result_was_tracked_tracks_it_when_run_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, journal = job(threshold=0.4), tmp_path / "out" / "journal" / "driver.jsonl"
    monkeypatch.setattr(module, "_run", None)  # would fail
    check_tracked_once_when_run_again(journal, lambda: job(threshold=0.4), "clusters", first.counts.clusters)
    assert job(threshold=0.4).counts == first.counts
