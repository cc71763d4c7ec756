"""Rates of verification and identification, against loops and scikit-learn's curves."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from rayface.evaluation.identification import identify, search, tar_at_far, thresholds_at_far


def slow_tar(genuine, impostor, far):
    """Try every impostor score, and minus infinity, as the threshold; accept what is above it."""
    for threshold in [-np.inf, *sorted(impostor)]:
        if sum(score > threshold for score in impostor) / len(impostor) <= far:
            return sum(score > threshold for score in genuine) / len(genuine)
    raise AssertionError("above the highest impostor none is accepted")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_tar_at_far_of_any_scores_equals_a_loop(seed, ties):
    random = np.random.default_rng(seed)
    genuine, impostor = random.normal(1, 1, 57), random.normal(0, 1, 100)
    if ties:
        genuine, impostor = genuine.round(1), impostor.round(1)
    # in no order, with repeats, all multiples of 1 / n (where a float product may miss the whole number), and the ends
    fars = [0.5, 0.0, 1.0, 0.999, 0.003, 0.5, *(i / 100 for i in range(100)), 0.29, 0.57, 0.58]
    wanted = [slow_tar(genuine, impostor, far) for far in fars]
    assert tar_at_far(genuine, impostor, fars).tolist() == wanted


def test_tar_at_far_just_below_a_whole_number_of_impostors_allows_one_fewer():
    # 100 * far rounds to 5.0, and 5 of 100 is more than far.
    far = np.nextafter(0.05, 0)
    assert tar_at_far([94.5], np.arange(100.0), [0.05, far]).tolist() == [1.0, 0.0]
    assert thresholds_at_far(np.arange(100.0), [0.05, far]).tolist() == [94.0, 95.0]


def test_tar_at_far_of_impostors_that_tie_refuses_them_together():
    # one false acceptance of four is allowed, but the two at 0.8 come together
    assert tar_at_far([0.9, 0.8, 0.7], [0.8, 0.8, 0.1, 0.0], [0.25]).tolist() == [1 / 3]
    assert tar_at_far([0.9, 0.8, 0.7], [0.8, 0.8, 0.1, 0.0], [0.5]).tolist() == [1.0]


def test_tar_at_far_of_inputs_of_any_shape_leaves_them_unchanged():
    impostor = np.array([[3.0, 1.0], [2.0, 0.0]])
    before = impostor.copy()
    assert tar_at_far(np.array([[2.5]]), impostor, np.array([0.25])).tolist() == [1.0]
    assert tar_at_far(np.array([[2.5]]), impostor, []).tolist() == []
    np.testing.assert_array_equal(impostor, before)


@pytest.mark.parametrize(
    ("genuine", "impostor", "fars", "words"),
    [
        ([], [0.1], [0.1], "genuine has 0 scores"),
        ([0.1], [], [0.1], "impostor has 0 scores"),
        ([0.1], [np.nan], [0.1], "no NaN"),
        (["0.1"], [0.1], [0.1], r"^genuine has 1 scores \(<U3\): must be at least 1 number"),
        ([0.1], [0.1, None], [0.1], r"^impostor has 2 scores \(object\)"),
        ([0.1], [0.1], [1.5], "between 0 and 1"),
        ([0.1], [0.1], [np.nan], "between 0 and 1"),
        ([0.1], [0.1], 0.5, "a list of rates"),
    ],
)
def test_tar_at_far_of_wrong_input_names_it(genuine, impostor, fars, words):
    with pytest.raises(ValueError, match=words):
        tar_at_far(genuine, impostor, fars)


@pytest.mark.parametrize("impostor", [[], [0.1, np.nan]])
def test_thresholds_at_far_without_impostors_or_of_a_nan_raise(impostor):
    with pytest.raises(ValueError, match="at least 1 and no NaN"):
        thresholds_at_far(impostor, [0.1])


@pytest.mark.parametrize("seed", range(3))
def test_tar_at_far_of_distinct_scores_equals_scikit_learns_roc_curve(seed):
    random = np.random.default_rng(seed)
    genuine, impostor = random.normal(1, 1, 300), random.normal(0, 1, 500)
    is_same, scores = np.repeat([1, 0], [300, 500]), np.concatenate([genuine, impostor])
    far, tar, _ = roc_curve(is_same, scores, drop_intermediate=False)
    fars = [0.0, 0.001, 0.002, 0.01, 0.1, 0.5, 1.0]
    assert tar_at_far(genuine, impostor, fars).tolist() == [tar[far <= rate].max() for rate in fars]
    for rate, threshold in zip(fars, thresholds_at_far(impostor, fars), strict=True):
        assert np.mean(impostor > threshold) <= rate
        assert np.mean(genuine > threshold) == tar_at_far(genuine, impostor, [rate])[0]


def slow_identify(probe, probe_ids, gallery, gallery_ids, ranks, fpirs):
    """Rank the gallery for every probe by a loop; float64."""
    cosines = [
        [float(p @ g / (np.linalg.norm(p) * np.linalg.norm(g))) for g in gallery.astype(np.float64)]
        for p in probe.astype(np.float64)
    ]
    found, strangers = [], []
    for scores, identity in zip(cosines, probe_ids, strict=True):
        mates = [score for score, other in zip(scores, gallery_ids, strict=True) if other == identity]
        if not mates:
            strangers.append(max(scores))
            continue
        others = [score for score, other in zip(scores, gallery_ids, strict=True) if other != identity]
        found.append((1 + sum(score >= max(mates) for score in others), max(mates)))
    rates = [sum(rank <= limit for rank, _ in found) / len(found) for limit in ranks]
    thresholds = []
    for far in fpirs:
        fits = [t for t in [-np.inf, *sorted(strangers)] if sum(s > t for s in strangers) / len(strangers) <= far]
        thresholds.append(min(fits))
    return rates, [sum(rank == 1 and score > t for rank, score in found) / len(found) for t in thresholds]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("entries", [1, 3])
def test_identify_of_random_probes_equals_a_loop(seed, entries):
    random = np.random.default_rng(seed)
    people = random.normal(size=(40, 8)) * 2
    gallery_ids = np.repeat(np.arange(30), entries)  # ten persons without an entry
    gallery = people[gallery_ids] + random.normal(size=(len(gallery_ids), 8))
    probe_ids = random.integers(0, 40, 120)
    probe = people[probe_ids] + random.normal(size=(120, 8))
    ranks, fpirs = [1, 5, 10], [0.0, 0.01, 0.1, 0.5, 1.0]
    rank_rates, tpir = identify(probe, probe_ids, gallery, gallery_ids, ranks=ranks, fpirs=fpirs)
    wanted = slow_identify(probe, probe_ids, gallery, gallery_ids, ranks, fpirs)
    assert (rank_rates.tolist(), tpir.tolist()) == wanted
    assert tpir[0] < tpir[3] < rank_rates[2]


def test_identify_of_a_mate_that_ties_with_a_stranger_is_not_first():
    same = np.array([[1.0, 0.0], [1.0, 0.0]])
    rank_rates, tpir = identify(same[:1], ["a"], same, ["a", "b"], ranks=[1, 2], fpirs=[0.1])
    assert rank_rates.tolist() == [0.0, 1.0]
    assert np.isnan(tpir).all()


def test_identify_of_a_mate_that_scores_as_the_best_stranger_is_not_accepted():
    gallery, probe = np.eye(3), np.eye(3)[[0, 1]]
    rank_rates, tpir = identify(probe, ["a", "stranger"], gallery, ["a", "b", "c"], ranks=[1], fpirs=[0.0, 1.0])
    assert (rank_rates.tolist(), tpir.tolist()) == ([1.0], [0.0, 1.0])


def test_identify_without_any_mate_or_stranger_gives_no_figure():
    probe = np.eye(3)
    assert np.isnan(identify(probe, [1, 2, 3], probe, [1, 2, 3])[1]).all()
    rank_rates, tpir = identify(probe, [1, 2, 3], probe, [4, 5, 6])
    assert np.isnan(rank_rates).all()
    assert np.isnan(tpir).all()


@pytest.mark.parametrize("seed", range(5))
def test_identify_of_equal_images_in_a_large_gallery_counts_every_tie(seed):
    """BLAS gives equal rows scores that differ in the last bits, by their places."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(12, 512))
    of_entry, of_probe = random.integers(0, 12, 300), random.integers(0, 12, 60)
    gallery_ids, probe_ids = random.integers(0, 10, 300), random.integers(0, 10, 60)
    found = search(images[of_probe], probe_ids, images[of_entry], gallery_ids)
    units = images / np.linalg.norm(images, axis=1, keepdims=True)
    scores = np.array([[float(a @ b) for b in units] for a in units])[of_probe][:, of_entry]
    mates = probe_ids[:, None] == gallery_ids
    best = np.where(mates, scores, -np.inf).max(1, keepdims=True)
    assert found.rank.tolist() == (1 + ((scores >= best) & ~mates).sum(1)).tolist()
    assert all(len(set(found.best[of_probe == image])) == 1 for image in of_probe)


@pytest.mark.parametrize("kind", [object, "f4", "u8"])
def test_identify_with_numbers_of_two_types_compares_them_by_value(kind):
    probe = np.eye(3)
    rank_rates, tpir = identify(probe, np.array([1, 2, 9], kind), probe, [1, 2, 3], ranks=[1], fpirs=[1.0])
    assert (rank_rates.tolist(), tpir.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probe_ids": ["1", "2"]}, "^probe_ids are strings, gallery_ids numbers: must be of one type"),
        ({"gallery_ids": [b"1", b"2"]}, "^probe_ids are numbers, gallery_ids bytes: must be of one type"),
        ({"gallery_ids": [1, None]}, "^gallery_ids: hold NoneType, int: must be all strings or all numbers"),
        ({"probe_ids": [1, np.nan]}, "^probe_ids: 1 are NaN: leave out images that have none"),
        ({"ranks": [0]}, "numbers from 1"),
        ({"ranks": [1.5]}, "whole numbers from 1"),
        ({"fpirs": [2.0]}, "fpirs .* between 0 and 1"),
        ({"probe_ids": [1]}, "one per embedding"),
        ({"gallery": np.ones((2, 5))}, r"must be \(P, D\)"),
        ({"probe": np.full((2, 2), np.nan)}, "finite and above 0"),
    ],
)
def test_identify_of_wrong_input_names_it(change, words):
    given = {"probe": np.eye(2), "probe_ids": [1, 2], "gallery": np.eye(2), "gallery_ids": [1, 2]} | change
    with pytest.raises(ValueError, match=words):
        identify(**given)
