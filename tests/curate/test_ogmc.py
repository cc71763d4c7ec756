"""Online clustering: calls cut anywhere, orders, saved and restored states, deletion, and bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate import ogmc as module
from rayface.curate.affinity import RATIO, cohesion, scale_of
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.ogmc import OnlineGaussianMixture, radius_of
from rayface.curate.ogmc_index import FOUND
from rayface.curate.ogmc_kernel import Thresholds
from rayface.storage import DataError
from tests.conftest import ObjectStore

Drawn = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(scope="module")
def faces() -> Drawn:
    """1,200 unit vectors of 60 persons, each with three poses, in a random order, and labels."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(60), 20))
    poses = random.standard_normal((60, 1, 64)) + 0.8 * random.standard_normal((60, 3, 64))
    vectors = poses[labels, random.integers(0, 3, len(labels))] + 0.8 * random.standard_normal((len(labels), 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def mixture(**options: Any) -> OnlineGaussianMixture:
    return OnlineGaussianMixture(**{"radius": 0.7, "link": 0.3, **options})


def test_ogmc_finds_persons_of_several_poses_in_any_order(faces: Drawn) -> None:
    vectors, labels = faces
    found = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(labels))
        own = mixture().partial_fit(vectors[order])
        found.append(cluster_scores(labels[order], own.labels_).pairwise_f)
    assert min(found) > 0.95
    assert max(found) - min(found) < 0.03


def test_ogmc_connects_several_components_to_an_identity(faces: Drawn) -> None:
    own = mixture(radius=0.6).partial_fit(faces[0])
    assert own._state is not None
    used = int(own._state.counters[0])
    connected = len(np.unique(own._state.identity[:used]))
    assert connected < used / 2


def test_ogmc_without_revisits_is_worse(faces: Drawn) -> None:
    vectors, labels = faces
    scores = [
        cluster_scores(labels, mixture(revisits=count).partial_fit(vectors).labels_).pairwise_f for count in (0, 2)
    ]
    assert scores[0] < scores[1]


@pytest.mark.parametrize("cuts", [[1], [255, 256, 257], [400, 401, 1199]])
def test_ogmc_gives_the_same_labels_however_the_stream_is_cut(faces: Drawn, cuts: list[int]) -> None:
    whole, parts = mixture().partial_fit(faces[0]), mixture()
    for part in np.split(faces[0], cuts):
        parts.partial_fit(part)
    assert (parts.labels_ == whole.labels_).all()


def test_ogmc_does_not_depend_on_the_norm_of_vectors(faces: Drawn) -> None:
    scales = np.random.default_rng(0).choice([0.5, 1, 4], (len(faces[0]), 1)).astype(np.float32)
    assert (mixture().partial_fit(faces[0] * scales).labels_ == mixture().partial_fit(faces[0]).labels_).all()


def test_ogmc_of_sums_equals_sums_of_its_images(faces: Drawn) -> None:
    vectors, _ = faces
    own = mixture().partial_fit(vectors)
    state = own._state
    assert state is not None
    for component in range(0, int(state.counters[0]), 7):
        members = own._component[: own.num_images] == component
        assert state.counts[component] == members.sum()
        assert state.sums[component] == pytest.approx(vectors[members].sum(axis=0), abs=1e-4)
        mean = vectors[members].astype(np.float64).mean(axis=0)
        assert 1 - state.mean2[component] == pytest.approx(
            ((vectors[members] - mean) ** 2).sum(axis=1).mean(), abs=1e-5
        )
    for identity in np.unique(state.identity[: int(state.counters[0])]):
        members = state.identity[own._component[: own.num_images]] == identity
        assert state.identity_counts[identity] == members.sum()
        assert state.identity_sums[identity] == pytest.approx(vectors[members].sum(axis=0), abs=1e-3)


def test_ogmc_identities_are_rings_of_their_components(faces: Drawn) -> None:
    """With their sizes and cohesions; the numbers of merged identities are free."""
    own = mixture(radius=0.5).partial_fit(faces[0])
    state, settings = own._state, own.settings
    assert state is not None
    scale = scale_of(settings.link, settings.base, settings.prior)
    components, identities, free, _ = state.counters.tolist()
    used = np.unique(state.identity[:components])
    assert sorted([*state.free[:free].tolist(), *used.tolist()]) == list(range(identities))
    assert free > 0
    for identity in used:
        members = np.flatnonzero(state.identity[:components] == identity)
        ring = [int(members[0])]
        for _ in range(state.sizes[identity] - 1):
            ring.append(int(state.following[ring[-1]]))
            assert state.preceding[ring[-1]] == ring[-2]
        assert (state.following[ring[-1]], state.preceding[ring[0]]) == (ring[0], ring[-1])
        assert sorted(ring) == members.tolist()
        square = float((state.identity_sums[identity].astype(np.float64) ** 2).sum())
        wanted = cohesion(square, state.identity_counts[identity], scale)
        assert state.cohesions[identity] == pytest.approx(wanted, rel=1e-4)


def test_ogmc_saved_and_loaded_resumes_as_if_it_had_not_stopped(faces: Drawn, tmp_path: Path) -> None:
    vectors, _ = faces
    first = mixture().partial_fit(vectors[:700])
    first.save(tmp_path / "state.npz")
    resumed = OnlineGaussianMixture.load(tmp_path / "state.npz")
    assert resumed.settings == first.settings
    assert (resumed.labels_ == first.labels_).all()
    assert (resumed.partial_fit(vectors[700:]).labels_ == mixture().partial_fit(vectors).labels_).all()


def test_ogmc_saved_and_loaded_by_text_path_or_uri_is_the_same(
    faces: Drawn, tmp_path: Path, object_store: ObjectStore
) -> None:
    first = mixture().partial_fit(faces[0][:100])
    for place in (tmp_path / "a.npz", str(tmp_path / "b.npz"), object_store.uri("c.npz")):
        first.save(place)
        assert (OnlineGaussianMixture.load(place).labels_ == first.labels_).all()


def test_ogmc_saves_the_same_state_as_the_same_bytes(faces: Drawn, tmp_path: Path) -> None:
    for name in ("a", "b"):
        mixture().partial_fit(faces[0][:600]).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_ogmc_without_images_is_saved_and_loaded(tmp_path: Path, faces: Drawn) -> None:
    mixture().save(tmp_path / "empty.npz")
    own = OnlineGaussianMixture.load(tmp_path / "empty.npz")
    assert own.labels_.tolist() == []
    assert len(own.partial_fit(faces[0][:5]).labels_) == 5


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut short"])
def test_ogmc_refuses_a_file_that_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(DataError, match="no saved OGMC state"):
        OnlineGaussianMixture.load(tmp_path / "state.npz")


def test_ogmc_forgets_a_deleted_identity_and_founds_it_anew(faces: Drawn) -> None:
    vectors, labels = faces
    own = mixture().partial_fit(vectors)
    before = own.labels_
    gone = int(np.bincount(before[labels == 7] + 1).argmax()) - 1
    own.delete(gone)
    assert (own.labels_[before == gone] == -1).all()
    assert (own.labels_[before != gone] == before[before != gone]).all()
    again = own.partial_fit(vectors[before == gone]).labels_[len(before) :]
    assert (again >= 0).mean() > 0.8
    assert not set(again[again >= 0].tolist()) & set(own.labels_[: len(before)].tolist()) - {-1}


def test_ogmc_refuses_to_delete_an_identity_that_is_not_there(faces: Drawn) -> None:
    for own in (mixture(), mixture().partial_fit(faces[0][:50])):
        with pytest.raises(ValueError, match="does not exist"):
            own.delete(10**6)


def test_ogmc_uses_the_number_of_a_deleted_identity_again() -> None:
    vectors = np.repeat(np.eye(3, 8), 2, axis=0)
    own = mixture().partial_fit(vectors)
    own.delete(1)
    with pytest.raises(ValueError, match="identity 1: does not exist"):
        own.delete(1)
    assert own.partial_fit(vectors[2:4]).labels_.tolist() == [0, 0, -1, -1, 2, 2, 1, 1]


def test_ogmc_indexes_the_components_of_a_whole_block_but_no_deleted_one() -> None:
    """The block is the images between two updates of the index."""
    vectors = np.eye(module._BLOCK, dtype=np.float32)
    own = mixture(min_images=1).partial_fit(vectors[:100])
    own.delete(50)
    own.partial_fit(vectors[100:])
    assert own._index is not None
    rows = np.delete(np.arange(len(vectors)), 50)
    assert own._index.arrays()["entries"].tolist() == rows.tolist()
    assert own.nearest_components(vectors)[rows].tolist() == rows.tolist()


def test_radius_of_a_link_is_a_distance_of_unit_vectors_of_bounded_cosine() -> None:
    assert radius_of(0.35, 0.05) == pytest.approx(1)  # cosine .05 + 1.5 * .3
    assert radius_of(0.9, 0.1, 1.8) == pytest.approx(0.2)  # .98 at most


def test_ogmc_counts_identities_of_few_images_as_noise() -> None:
    vectors = np.repeat(np.eye(3, 8), [1, 2, 4], axis=0)
    assert (mixture(min_images=1).partial_fit(vectors).labels_ >= 0).all()
    assert (mixture().partial_fit(vectors).labels_ < 0).tolist() == [True] + 6 * [False]
    assert (mixture(min_images=3).partial_fit(vectors).labels_ < 0).tolist() == 3 * [True] + 4 * [False]


def test_ogmc_of_equal_vectors_is_one_component() -> None:
    own = mixture().partial_fit(np.ones((600, 8)))
    assert own._state is not None
    assert own._state.counters[0] == 1
    assert set(own.labels_.tolist()) == {0}


@pytest.mark.parametrize("name", ["sizes", "counts", "identity_sums"])
def test_ogmc_refuses_a_state_whose_arrays_are_too_short(tmp_path: Path, faces: Drawn, name: str) -> None:
    mixture().partial_fit(faces[0][:300]).save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as file:
        arrays = {each: file[each] for each in file.files}
    np.savez(tmp_path / "state.npz", **(arrays | {name: arrays[name][:-1]}))
    with pytest.raises(DataError, match=f"no saved OGMC state .*{name}: has"):
        OnlineGaussianMixture.load(tmp_path / "state.npz")


def test_ogmc_calibrated_on_labelled_images_clusters_others_well() -> None:
    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(60), 10)
    vectors = random.standard_normal((60, 64))[labels] + 0.7 * random.standard_normal((600, 64))
    known = labels < 30
    own = OnlineGaussianMixture.calibrated(vectors[known], labels[known])
    assert own.num_images == 0
    assert own.settings.base < own.settings.link < 0.7
    own.partial_fit(vectors[~known])
    assert cluster_scores(labels[~known], own.labels_).pairwise_f > 0.97


@pytest.mark.parametrize("labels", [[1] * 6, [0, 1], [0, 1, 2, 3, 4, np.nan], ["a", "b", "c", "d", "e", None]])
def test_ogmc_calibrated_on_labels_that_do_not_fit_is_refused(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^labels"):
        OnlineGaussianMixture.calibrated(np.eye(6), labels)
    with pytest.raises(ValueError, match=r"^labels shape \(0,\): must be \(0,\), of at least 2 identities"):
        OnlineGaussianMixture.calibrated(np.empty((0, 6)), [])


def test_ogmc_calibrated_takes_the_smallest_components_of_the_best_score(
    faces: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = faces
    found, scored = iter([(0.3, 0.97), (0.4, 0.97), (0.5, 0.95)]), []  # link and score of each reach
    monkeypatch.setattr(module, "best_threshold", lambda _, known, *rest: scored.append(known) or next(found))
    settings = OnlineGaussianMixture.calibrated(vectors, labels).settings
    assert (settings.link, settings.radius) == (0.4, radius_of(0.4, settings.base, 1.5))
    first, second = np.split(scored[0], 2)  # no image of one order is a pair with one of the other
    assert not {*first.tolist()} & {*second.tolist()}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((2, 8)), "all zeros"), (np.full((1, 8), np.nan), "NaN or infinity"), (np.ones(8), "must be")],
)
def test_ogmc_refuses_bad_vectors_and_keeps_its_state(vectors: Any, message: str) -> None:
    own = mixture().partial_fit(np.eye(8))
    with pytest.raises(ValueError, match=message):
        own.partial_fit(vectors)
    assert own.num_images == 8


def test_ogmc_refuses_vectors_of_another_length() -> None:
    with pytest.raises(ValueError, match="length 4: must be 8"):
        mixture().partial_fit(np.eye(8)).partial_fit(np.eye(4))


def test_ogmc_looks_at_a_bounded_number_of_components(faces: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    add = module.add_vectors
    monkeypatch.setattr(module, "add_vectors", lambda *args: widths.append((args[1].shape[1], args[2])) or add(*args))
    own = mixture(radius=0.3).partial_fit(faces[0])
    assert own._state is not None
    assert int(own._state.counters[0]) > 600
    assert max(width for width, _ in widths) == FOUND
    assert int(own._state.counters[0]) - widths[-1][1] <= module._BLOCK
    assert len(widths) == -(-len(faces[0]) // module._BLOCK)


def test_ogmc_gives_its_settings_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    add = module.add_vectors
    monkeypatch.setattr(module, "add_vectors", lambda *args: given.append(args[4]) or add(*args))
    mixture(base=0.1, slack=0.2, prior=9.0, revisits=3).partial_fit(np.eye(4))
    assert given == [Thresholds(0.7**2, RATIO * 0.8, 3, scale_of(0.3, 0.1, 9.0))]
