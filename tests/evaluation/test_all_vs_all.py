"""All-vs-all rates, against a loop over all pairs and scikit-learn's curve."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from rayface.evaluation import all_vs_all as module
from rayface.evaluation.all_vs_all import all_vs_all, tail_rates
from rayface.evaluation.extremes import Extremes
from rayface.evaluation.identification import tar_at_far
from rayface.evaluation.pair_tiles import PairTiles, Tile

FARS = [0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0]


def embedded(num_images=90, num_labels=12, size=6, seed=0, dtype=np.float64):
    """Raw embeddings of labels in random order, and a group of each image that cuts through the identities."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_labels, num_images)
    rows = random.normal(size=(num_labels, size))[labels] + random.normal(size=(num_images, size))
    return (rows * random.uniform(0.5, 2, (num_images, 1))).astype(dtype), labels, random.choice(["f", "m"], num_images)


def scores_of(embeddings, labels, groups=None, group=None):
    """Cosines of all unordered pairs (of a group), by a loop in float64."""
    found = {True: [], False: []}
    rows = embeddings.astype(np.float64)
    for i in range(len(rows)):
        for j in range(i):
            if group is None or (groups[i] == group and groups[j] == group):
                cosine = rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
                found[bool(labels[i] == labels[j])].append(cosine)
    return np.array(found[True]), np.array(found[False])


@pytest.mark.parametrize("seed", range(3))
def test_all_vs_all_of_groups_equals_a_loop_and_scikit_learns_curve(seed):
    embeddings, labels, groups = embedded(seed=seed)
    rates = all_vs_all(embeddings, labels, FARS, groups=groups)
    assert list(rates) == ["all", "f", "m"]
    for group, found in rates.items():
        genuine, impostor = scores_of(embeddings, labels, groups, None if group == "all" else group)
        assert found == tar_at_far(genuine, impostor, FARS).tolist()
        far, tar, _ = roc_curve(
            np.repeat([1, 0], [len(genuine), len(impostor)]), np.r_[genuine, impostor], drop_intermediate=False
        )
        assert found == [tar[far <= rate].max() for rate in FARS]


def test_more_rates_copy_no_more_tensors_to_the_host(monkeypatch):
    """An accelerator's host waits for every copy: the brackets of all rates are counted from one."""
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 32)
    monkeypatch.setattr(PairTiles.tiles, "__defaults__", ((48, 20),))
    embeddings, labels, _ = embedded(400, 60, seed=3)
    copy, found = torch.Tensor.cpu, []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: found.append(1) or copy(tensor))
    copies = []
    for fars in (FARS[:1], FARS[:4]):
        found.clear()
        tail_rates(embeddings, labels, fars)
        copies.append(len(found))
    assert copies[0] == copies[1] > 0


def test_all_vs_all_in_small_tiles_with_brackets_equals_a_loop(monkeypatch):
    # a set larger than the sample: thresholds lie in brackets, and tiles end in the middle of identities
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 32)
    monkeypatch.setattr(PairTiles.tiles, "__defaults__", ((48, 20),))
    embeddings, labels, _ = embedded(400, 60, seed=3)
    brackets, screened = module._brackets(PairTiles.of(embeddings, labels), [0, 700, 40000], 0.01)
    assert not screened
    assert all(bracket.low > -1 for bracket in brackets)
    assert brackets[-1].high < 1
    rates = all_vs_all(embeddings, labels, FARS)
    genuine, impostor = scores_of(embeddings, labels)
    assert rates["all"] == tar_at_far(genuine, impostor, FARS).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_all_vs_all_screened_in_bfloat16_equals_a_loop(monkeypatch, seed):
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 64)
    monkeypatch.setattr(module, "_MOST_NEAR", 1.0)
    monkeypatch.setattr(PairTiles, "can_screen", True)
    monkeypatch.setattr(PairTiles.tiles, "__kwdefaults__", {"screened": False})
    monkeypatch.setattr(PairTiles.tiles, "__defaults__", ((48, 20),))
    embeddings, labels, _ = embedded(500, 60, size=24, seed=seed, dtype=np.float32)
    fars, extremes, screened = [0.0, 1e-4, 1e-3, 1e-2], Extremes(5), []
    real = Tile.above
    monkeypatch.setattr(Tile, "above", lambda tile, floor: screened.append(tile.units is not None) or real(tile, floor))
    found = tail_rates(embeddings, labels, fars, extremes=extremes)
    genuine, impostor = scores_of(embeddings, labels)
    assert found.tar.tolist() == tar_at_far(genuine, impostor, fars).tolist()
    highest = np.sort(impostor)[::-1]
    allowed = [int(far * len(impostor)) for far in fars]
    np.testing.assert_allclose(found.threshold, highest[allowed], rtol=0, atol=1e-6)
    np.testing.assert_allclose([score for score, *_ in extremes.impostor], highest[:5], rtol=0, atol=1e-6)
    np.testing.assert_allclose([score for score, *_ in extremes.genuine], np.sort(genuine)[:5], rtol=0, atol=1e-6)
    assert 0.7 < np.mean(screened) < 1


def test_all_vs_all_screens_only_where_few_pairs_are_near_a_threshold(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 64)
    monkeypatch.setattr(PairTiles, "can_screen", True)
    embeddings, labels, _ = embedded(500, 60, size=64, seed=0, dtype=np.float32)
    pairs = PairTiles.of(embeddings, labels)
    assert module._brackets(pairs, [0], 1e-4)[1]
    assert not module._brackets(pairs, [0, pairs.num_impostor // 100], 1e-4)[1]


def test_all_vs_all_with_a_bracket_that_misses_repeats_the_pass(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 16)
    embeddings, labels, _ = embedded(200, 30, seed=4)
    passes = []
    monkeypatch.setattr(PairTiles, "sample", lambda self, *shape: np.full(1000, -0.9 + len(passes)))
    real = module._brackets
    monkeypatch.setattr(module, "_brackets", lambda *given: passes.append(1) or real(*given))
    pairs = []
    found = tail_rates(embeddings, labels, FARS, done=pairs.append)
    genuine, impostor = scores_of(embeddings, labels)
    assert found.tar.tolist() == tar_at_far(genuine, impostor, FARS).tolist()
    assert len(passes) > 1
    assert sum(pairs) == len(passes) * (200 * 199 // 2)


def test_all_vs_all_with_a_sample_that_always_misses_ends_with_each_worst_pair_once(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 16)
    monkeypatch.setattr(PairTiles, "sample", lambda self, *shape: np.full(10_000, 2.0))
    embeddings, labels, _ = embedded(200, 30, seed=4)
    pairs, extremes = [], Extremes(5)
    found = tail_rates(embeddings, labels, FARS, done=pairs.append, extremes=extremes)
    genuine, impostor = scores_of(embeddings, labels)
    assert found.tar.tolist() == tar_at_far(genuine, impostor, FARS).tolist()
    assert sum(pairs) == 4 * (200 * 199 // 2)  # brackets of .01, .08, .64, and without limits
    np.testing.assert_allclose([score for score, *_ in extremes.genuine], np.sort(genuine)[:5])
    np.testing.assert_allclose([score for score, *_ in extremes.impostor], np.sort(impostor)[:-6:-1])


def test_all_vs_all_with_many_worst_pairs_places_a_bracket_for_them(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE_SIDE", 16)
    embeddings, labels, _ = embedded(200, 30, seed=4)
    highest = np.sort(scores_of(embeddings, labels)[1])[::-1]
    real, ranks = module._brackets, []
    monkeypatch.setattr(module, "_brackets", lambda *given: ranks.append(given[1]) or real(*given))
    for count in (5000, len(highest), len(highest) + 1):
        extremes = Extremes(count)
        tail_rates(embeddings, labels, [0.0], extremes=extremes)
        np.testing.assert_allclose([score for score, *_ in extremes.impostor], highest[:count])
    assert ranks == [[0, 4999], [0, len(highest) - 1], [0, len(highest) - 1]]


def test_all_vs_all_of_a_memory_map_in_half_precision_equals_the_array(tmp_path):
    embeddings, labels, groups = embedded(dtype=np.float16)
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    assert all_vs_all(mapped, labels, FARS, groups) == all_vs_all(embeddings, labels, FARS, groups)
    genuine, impostor = scores_of(embeddings, labels)
    assert all_vs_all(mapped, labels, [0.1])["all"] == tar_at_far(genuine, impostor, [0.1]).tolist()


def test_all_vs_all_of_constant_scores_accepts_nothing_below_far_1():
    assert all_vs_all(np.ones((6, 3)), [0, 0, 0, 1, 1, 1], [0.5, 1.0])["all"] == [0.0, 1.0]


def test_all_vs_all_of_a_group_of_one_identity_gives_no_figure():
    embeddings, labels, _ = embedded()
    rates = all_vs_all(embeddings, labels, FARS, groups=labels == 0)
    assert np.isnan(rates[True]).all()
    assert np.isfinite(rates[False]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0] * 4}, "0 impostor pairs"),
        ({"labels": [0, 1, 2, 3]}, "0 genuine"),
        ({"labels": [0, 1]}, r"must be \(N, D\) and \(N,\)"),
        ({"fars": [1.5]}, "between 0 and 1"),
        ({"groups": ["a"]}, "one per image"),
        ({"groups": ["all", "b", "b", "b"]}, "rename the group"),
        ({"embeddings": np.diag([1.0, 1.0, np.nan, 0.0])}, "embedding 2 has length nan.*2 of 4"),
    ],
)
def test_all_vs_all_of_wrong_input_names_it(change, words):
    given = {"embeddings": np.eye(4), "labels": [0, 0, 1, 1], "fars": [0.1]} | change
    with pytest.raises(ValueError, match=words):
        all_vs_all(**given)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_all_vs_all_leaves_images_without_a_group_out_of_the_groups(missing):
    embeddings, labels, groups = embedded()
    some = groups.astype(object)
    some[::3] = missing
    rates = all_vs_all(embeddings, labels, FARS, groups=some)
    assert list(rates) == ["all", "f", "m"]
    for group in ("f", "m"):
        assert rates[group] == tar_at_far(*scores_of(embeddings, labels, some, group), FARS).tolist()
    assert list(all_vs_all(embeddings, labels, FARS, groups=[None] * 90)) == ["all"]


@pytest.mark.parametrize("kind", [">f8", ">f4"])
def test_all_vs_all_of_another_byte_order_equals_the_native_one(kind):
    embeddings, labels, _ = embedded(dtype=kind[1:])
    assert all_vs_all(embeddings.astype(kind), labels, FARS) == all_vs_all(embeddings, labels, FARS)


def test_all_vs_all_with_a_group_named_all_is_refused_before_any_pass(monkeypatch):
    monkeypatch.setattr(module, "tail_rates", lambda *given, **options: pytest.fail("a pass over the pairs"))
    with pytest.raises(ValueError, match=r"^groups: 'all' is the name"):
        all_vs_all(np.eye(4), [0, 0, 1, 1], [0.1], groups=["all", "b", "b", "b"])
