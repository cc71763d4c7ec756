"""Images to known identities: what a plain loop finds, and thresholds that hold their false accept rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from rayface.curate.cluster import assign as module
from rayface.curate.cluster import unit_vectors
from rayface.curate.cluster.assign import far_threshold, gallery_of
from rayface.curate.cluster.unit_vectors import UnitVectors
from rayface.curate.work_files import WorkPath
from tests.curate.cluster.test_cluster import Job, People, job

__all__ = ["job"]  # the fixture
Table = dict[str, NDArray[Any]]


@pytest.fixture
def assigned(job: Job, people: People, put_embeddings: Any, tmp_path: Path, monkeypatch: Any) -> Callable[..., Table]:
    """A function of config keys -> labels.parquet of 24 persons' images, of which the gallery knows 12 (labels 7 i)."""
    monkeypatch.setattr(module, "map_unordered", unit_vectors.map_unordered)
    vectors, labels = people(24, 16, spread=0.6, size=64)
    first = np.arange(len(labels)) % 2 == 0
    known = first & (labels < 12)
    put_embeddings(7 * labels[known], vectors[known], "gallery")
    put_embeddings(labels[~first], vectors[~first], "photos")

    def assigned(**keys: Any) -> Table:
        job(embeddings=str(tmp_path / "photos"), assign=str(tmp_path / "gallery"), threshold=0.45, **keys)
        table = pq.read_table(tmp_path / "out" / "labels.parquet")
        found = {name: table[name].to_numpy() for name in table.column_names}
        return found | {"person": labels[~first], "x": vectors[~first], "known_x": vectors[known], "of": labels[known]}

    return assigned


def test_cluster_assigns_photos_to_known_identities_as_a_plain_loop_does(assigned: Callable[..., Table]) -> None:
    found = assigned(far=0.05)
    gallery, of = found["known_x"].astype(np.float64), found["of"]
    centers = {}
    for person in sorted(set(of.tolist())):
        total = sum(gallery[row] / np.linalg.norm(gallery[row]) for row in range(len(of)) if of[row] == person)
        centers[person] = total / np.linalg.norm(total)
    impostors = sorted(
        max(float(gallery[row] @ center) for person, center in centers.items() if person != of[row])
        for row in range(len(of))
    )
    threshold = impostors[len(impostors) - 1 - int(0.05 * len(impostors))]
    for row, x in enumerate(found["x"]):
        scores = sorted(((float(x @ center), person) for person, center in centers.items()), reverse=True)
        assert found["score"][row] == pytest.approx(scores[0][0], abs=1e-5)
        assert found["margin"][row] == pytest.approx(scores[0][0] - scores[1][0], abs=1e-5)
        assert found["identity"][row] == (7 * scores[0][1] if scores[0][0] > threshold else -1)


def test_cluster_puts_strangers_into_new_clusters_or_noise(assigned: Callable[..., Table]) -> None:
    found = assigned(far=0.01)
    known = found["person"] < 12
    assert (found["identity"][known] == 7 * found["person"][known]).mean() > 0.95
    assert (found["identity"][~known] == -1).mean() > 0.95
    new, old = (set(found["cluster"][found["identity"] == -1].tolist()) - {-1}), found["identity"] >= 0
    assert not new & set(found["cluster"][old].tolist())
    assert (found["cluster"][old] >= 0).all()
    for identity in np.unique(found["identity"][old]):
        assert len(set(found["cluster"][found["identity"] == identity].tolist())) == 1
    strangers = (found["identity"] == -1) & ~known & (found["cluster"] >= 0)
    pure = [len(set(found["person"][strangers & (found["cluster"] == number)].tolist())) for number in new]
    assert np.mean(np.array(pure) <= 1) > 0.9


def test_far_threshold_accepts_about_the_share_of_strangers_asked_for(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "map_unordered", lambda work, parts, *phase, **of: map(work, parts))
    vectors, labels = people(600, 2, spread=0.6, size=64)
    known = labels < 300
    np.save(tmp_path / "units-000000.npy", vectors[known])
    gallery = UnitVectors(folder=WorkPath(root=tmp_path), starts=(0, int(known.sum())))
    centers = gallery_of(gallery, labels[known]).centers
    for far in (0.05, 0.3):
        threshold = far_threshold(gallery, labels[known], far, "clustering.assign")
        accepted = ((vectors[~known] @ centers.T).max(axis=1) > threshold).mean()
        assert accepted == pytest.approx(far, rel=0.4)


def test_cluster_takes_the_threshold_from_labelled_embeddings_if_given(
    job: Job, assigned: Callable[..., Table], people: People, put_embeddings: Any, tmp_path: Path
) -> None:
    vectors, labels = people(12, 8, spread=0.6, size=64, seed=5)
    put_embeddings(labels, vectors, "labelled")
    keys = {"embeddings": str(tmp_path / "photos"), "assign": str(tmp_path / "gallery"), "far": 0.05}
    own = job(**keys, out=str(tmp_path / "a"), threshold=0.45).assigned
    other = job(**keys, out=str(tmp_path / "b"), calibrate=str(tmp_path / "labelled")).assigned
    assert own is not None
    assert other is not None
    assert own.threshold != other.threshold
    assert own.threshold == pytest.approx(other.threshold, abs=0.15)
    put_embeddings(np.zeros(3, np.int64), np.eye(3, 64), "one")  # without a second identity, the margin is 2
    one = keys | {"assign": str(tmp_path / "one"), "out": str(tmp_path / "c")}
    job(**one, calibrate=str(tmp_path / "labelled"))
    assert set(pq.read_table(tmp_path / "c" / "labels.parquet")["margin"].to_pylist()) == {2.0}


def test_assign_of_an_image_at_the_threshold_leaves_it_a_stranger(
    put_embeddings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = put_embeddings(np.arange(2), np.eye(2), "gallery")
    np.save(tmp_path / "units-000000.npy", np.array([[0.6, 0.0], [0.7, 0.0]]))
    vectors = UnitVectors(folder=WorkPath(root=tmp_path), starts=(0, 2))
    for each in (module, unit_vectors):
        monkeypatch.setattr(each, "map_unordered", lambda work, parts, *phase, **of: map(work, parts))
    monkeypatch.setattr(module, "far_threshold", lambda *args: np.float32(0.6))
    found = module.assign(vectors, known, None, WorkPath(root=tmp_path / "work"), 0.01, 1 << 20)
    assert found.identity.tolist() == [-1, 0]


def test_cluster_assigning_to_one_known_identity_is_refused(
    job: Job, assigned: Callable[..., Table], put_embeddings: Any, tmp_path: Path
) -> None:
    put_embeddings(np.zeros(3, np.int64), np.eye(3, 64), "one")
    with pytest.raises(ValueError, match=r"clustering.assign: has one identity: must be several"):
        job(embeddings=str(tmp_path / "photos"), assign=str(tmp_path / "one"), threshold=0.4)


@pytest.mark.parametrize("keys", [{"method": "ogmc"}, {"within": True}])
def test_cluster_assigning_with_settings_that_contradict_it_is_refused(job: Job, keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="assign: with within or method ogmc"):
        job(assign="gallery", **keys)
