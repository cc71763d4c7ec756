"""Index of components: what it finds beside brute force, how many it compares, and that it goes on where it stopped."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate import ogmc_index as module
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.ogmc import OnlineGaussianMixture
from rayface.curate.ogmc_index import ComponentIndex

Vectors = NDArray[np.float32]


def units(count: int, size: int = 32, seed: int = 0) -> Vectors:
    x = np.random.default_rng(seed).standard_normal((count, size), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def near(x: Vectors, cosine: float = 0.7, seed: int = 1) -> Vectors:
    y = cosine * x + np.sqrt(1 - cosine**2) * units(len(x), x.shape[1], seed)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def filled(vectors: Vectors) -> ComponentIndex:
    """Return an index of components 0, 1, ..., filled as clustering fills it."""
    own = ComponentIndex(vectors.shape[1])
    for start in range(0, len(vectors), 512):
        stop = min(start + 512, len(vectors))
        own.add(np.arange(start, stop), vectors[start:stop])
        if own.is_outgrown:
            own.remake(np.arange(stop), vectors[:stop])
    return own


@pytest.mark.parametrize("most_in_graph", [1000, 10**6])
def test_index_finds_what_brute_force_does(monkeypatch: pytest.MonkeyPatch, most_in_graph: int) -> None:
    monkeypatch.setattr(module, "MOST_IN_GRAPH", most_in_graph)
    monkeypatch.setattr(module, "_BLOCK", 500)  # lists are made of several
    x = units(6000)
    queries = near(x[::12])
    exact = (queries @ x.T).argmax(axis=1)
    found = filled(x).search(queries)
    assert found.shape == (500, module.FOUND)
    assert (found == exact[:, None]).any(axis=1).mean() > 0.93


def test_index_without_components_finds_none_and_of_few_pads_with_minus_one() -> None:
    own = ComponentIndex(32)
    assert own.search(units(3)).shape == (3, 0)
    x = units(5)
    own.add(np.arange(7, 12), x)
    assert own.search(x).shape == (5, 5)
    assert own.search(x)[:, 0].tolist() == [7, 8, 9, 10, 11]
    own.remake(np.arange(7, 12), x)
    found = own.search(x)
    assert found.shape == (5, module.FOUND)
    assert found[:, 0].tolist() == [7, 8, 9, 10, 11]
    assert np.sort(found, axis=1)[:, -6:].tolist() == [[-1, 7, 8, 9, 10, 11]] * 5


def test_index_is_outgrown_at_the_limit_of_the_graph_and_at_twice_the_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IN_GRAPH", 100)
    own, x, outgrown = ComponentIndex(32), units(100), []
    for start, stop in ((0, 99), (99, 100)):
        own.add(np.arange(start, stop), x[start:stop])
        outgrown.append(own.is_outgrown)
    own.remake(np.arange(60), x[:60])
    outgrown.append(own.is_outgrown)
    for start, stop in ((0, 59), (59, 60)):
        own.add(np.arange(start, stop), x[start:stop])
        outgrown.append(own.is_outgrown)
    assert outgrown == [False, True, False, False, True]


def test_index_adds_on_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = faiss.omp_get_max_threads(), []
    faiss.omp_set_num_threads(3)
    try:
        own = ComponentIndex(32)
        monkeypatch.setattr(own._graph, "add", lambda means: seen.append(faiss.omp_get_max_threads()))
        own.add(np.arange(4), units(4))
        assert (seen, faiss.omp_get_max_threads()) == ([1], 3)
    finally:
        faiss.omp_set_num_threads(threads)


def test_directions_of_sketches_are_those_of_saved_states() -> None:
    """A saved index holds sketches, not the directions they were made by."""
    assert [module._directions(size).shape[1] for size in (32, 256, 257, 300, 600)] == [256, 256, 264, 304, 512]
    np.testing.assert_allclose(module._directions(300)[[0, -1], [0, -1]], [1.117622, 1.9585993], rtol=1e-5)


def comparisons(count: int) -> float:
    """Return how many vectors and sketches a search compares in an index of `count` components."""
    x = units(count, 16)
    own = filled(x)
    faiss.cvar.indexIVF_stats.reset()
    faiss.cvar.hnsw_stats.reset()
    own.search(near(x[:200]))
    return (faiss.cvar.indexIVF_stats.ndis + faiss.cvar.hnsw_stats.ndis) / 200


def test_index_of_eight_times_the_components_compares_about_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IN_GRAPH", 4096)
    monkeypatch.setattr(module, "_LIST", 32)
    assert comparisons(32_768) < 1.5 * comparisons(4096)  # 8 times the components


def test_index_of_vectors_far_from_zero_finds_what_brute_force_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IN_GRAPH", 1000)
    x = units(4000) + 20 * units(1, seed=9)  # random pairs have a cosine of .9975
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    queries = x[::10] + 0.015 * units(400, seed=3)  # signs of vectors that are not centered find .7 of them
    exact = (queries @ x.T).argmax(axis=1)
    assert (filled(x).search(queries) == exact[:, None]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("most_in_graph", [1000, 10**6])
def test_index_restored_resumes_as_if_it_had_not_stopped(monkeypatch: pytest.MonkeyPatch, most_in_graph: int) -> None:
    monkeypatch.setattr(module, "MOST_IN_GRAPH", most_in_graph)
    x = units(2500)
    whole = filled(x[:2000])
    again = ComponentIndex.restored(32, whole.arrays())
    for own in (whole, again):
        own.add(np.arange(2000, 2500), x[2000:])
    assert (whole.search(near(x)) == again.search(near(x))).all()
    left, right = whole.arrays(), again.arrays()
    assert left.keys() == right.keys()
    assert all((left[name] == right[name]).all() for name in left)


def test_index_made_anew_holds_only_the_components_given() -> None:
    x = units(300)
    own = ComponentIndex(32)
    own.add(np.arange(300), x)
    own.remake(np.arange(0, 300, 3), x[::3])
    found = own.search(near(x))
    assert set(found[found >= 0].tolist()) <= set(range(0, 300, 3))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[Vectors, NDArray[np.int64]]:
    """3,000 images of 300 persons whose components outgrow the graph several times; vectors and labels."""
    monkeypatch.setattr(module, "MOST_IN_GRAPH", 300)
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(300), 10))
    return near(units(300, 64)[labels], 0.8), labels


def test_ogmc_that_outgrows_its_graph_finds_persons(drawn: tuple[Vectors, NDArray[np.int64]]) -> None:
    own = OnlineGaussianMixture(radius=0.7, link=0.4).partial_fit(drawn[0])
    assert cluster_scores(drawn[1], own.labels_).pairwise_f > 0.97


def test_ogmc_that_outgrew_its_graph_saved_and_loaded_resumes(
    drawn: tuple[Vectors, NDArray[np.int64]], tmp_path: Path
) -> None:
    whole, part = (OnlineGaussianMixture(radius=0.7, link=0.4).partial_fit(drawn[0][:n]) for n in (3000, 1700))
    part.delete(int(part.labels_[0]))
    part.save(tmp_path / "state.npz")
    part = OnlineGaussianMixture.load(tmp_path / "state.npz").partial_fit(drawn[0][1700:])
    same = (whole.labels_ >= 0) & (part.labels_ >= 0)
    assert cluster_scores(whole.labels_[same], part.labels_[same]).pairwise_f > 0.97
