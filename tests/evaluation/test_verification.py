"""Ten-fold accuracy and ROC against plain loops."""

import numpy as np
import pytest

from rayface.evaluation import verification
from rayface.evaluation.verification import (
    THRESHOLDS,
    best_threshold,
    fold_accuracy,
    fold_decisions,
    pair_scores,
    roc,
    ten_fold_accuracy,
    thinned,
)


def pairs(num_pairs=83, num_dimensions=4, seed=0, noise=0.6):
    """Random pairs that overlap: some of either kind are on the wrong side of any threshold."""
    random = np.random.default_rng(seed)
    a = random.normal(size=(num_pairs, num_dimensions))
    is_same = random.random(num_pairs) < 0.5
    b = np.where(is_same[:, None], a + noise * random.normal(size=a.shape), random.normal(size=a.shape))
    return a, b, is_same


def test_pair_scores_in_blocks_equal_a_loop(monkeypatch):
    monkeypatch.setattr(verification, "_BLOCK", 20)
    embeddings, _, _ = pairs(30)
    a, b = np.random.default_rng(1).integers(0, 30, (2, 83))
    blocks: list[None] = []
    distance, cosine = pair_scores(embeddings, a, b, lambda: blocks.append(None))
    rows = unit(embeddings)
    assert cosine == pytest.approx([float(rows[i] @ rows[j]) for i, j in zip(a, b, strict=True)])
    assert distance == pytest.approx([float(((rows[i] - rows[j]) ** 2).sum()) for i, j in zip(a, b, strict=True)])
    assert len(blocks) == 5


def unit(vectors):
    return [vector / np.sqrt((vector**2).sum()) for vector in np.asarray(vectors, np.float64)]


def slow_folds(num_pairs):
    """The rule of scikit-learn's KFold without shuffling: the first folds take one more."""
    sizes = [num_pairs // 10 + (fold < num_pairs % 10) for fold in range(10)]
    return [fold for fold, size in enumerate(sizes) for _ in range(size)]


def slow_accuracy(a, b, is_same, folds):
    distances = [float(((x - y) ** 2).sum()) for x, y in zip(unit(a), unit(b), strict=True)]
    accuracies = []
    for tested in sorted(set(folds)):
        best, best_right = None, -1
        for step in range(400):
            threshold = np.arange(0, 4, 0.01)[step]
            right = sum((d < threshold) == s for d, s, f in zip(distances, is_same, folds, strict=True) if f != tested)
            if right > best_right:
                best, best_right = threshold, right
        inside = [(d < best) == s for d, s, f in zip(distances, is_same, folds, strict=True) if f == tested]
        accuracies.append(sum(inside) / len(inside))
    return np.mean(accuracies), np.std(accuracies)


@pytest.mark.parametrize("seed", range(4))
def test_ten_fold_accuracy_of_random_pairs_equals_a_loop(seed):
    a, b, is_same = pairs(seed=seed)
    wanted = slow_accuracy(a, b, is_same, slow_folds(len(is_same)))
    np.testing.assert_allclose(ten_fold_accuracy(a, b, is_same), wanted, rtol=0, atol=1e-12)
    assert 0.5 < wanted[0] < 1


def test_ten_fold_accuracy_with_folds_of_any_numbers_equals_a_loop():
    a, b, is_same = pairs(num_pairs=40, seed=7)
    fold = np.random.default_rng(1).choice([3, 11, 5], 40)
    wanted = slow_accuracy(a, b, is_same, list(fold))
    np.testing.assert_allclose(ten_fold_accuracy(a, b, is_same, fold), wanted, rtol=0, atol=1e-12)


def test_ten_fold_accuracy_at_a_distance_equal_to_the_threshold_counts_as_different():
    a = np.tile([[1.0, 0.0]], (20, 1))
    is_same = np.arange(20) % 2 == 0
    b = np.where(is_same[:, None], a, -a)  # squared distances 0 and 4
    assert ten_fold_accuracy(a, b, is_same) == (1.0, 0.0)
    # 0 is not below the lowest threshold, 0: nothing is told apart when all are equal
    assert ten_fold_accuracy(a, a, is_same)[0] == 0.5


@pytest.mark.parametrize("step", [1, 2, 399])
def test_fold_accuracy_of_distances_that_one_threshold_tells_apart_is_perfect(step):
    """Distances below a threshold are of one person; a distance equal to it is not."""
    same = np.arange(20) % 2 == 0
    distance = np.where(same, THRESHOLDS[step] - 0.005, THRESHOLDS[step])
    assert THRESHOLDS[step] == pytest.approx(step / 100)
    assert fold_accuracy(distance, same) == (1.0, 0.0)
    accepted, _ = fold_decisions(distance, same)
    assert accepted.tolist() == same.tolist()


def test_ten_fold_accuracy_of_embeddings_of_any_norm_is_equal():
    a, b, is_same = pairs()
    assert ten_fold_accuracy(a * 7, b / 3, is_same) == ten_fold_accuracy(a, b, is_same)


@pytest.mark.parametrize(
    ("scores", "same", "wanted"),
    [
        ([0.9, 0.5, 0.1], [1, 0, 1], -0.4),  # accepting all is as good as accepting the first
        ([0.1, 0.9, 0.5], [0, 1, 1], 0.3),
        ([0.9, 0.5], [0, 0], 1.4),
        ([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0], 0.3),  # scores that tie are accepted together
    ],
)
def test_best_threshold_of_equally_good_ones_is_the_lowest(scores, same, wanted):
    assert best_threshold(np.array(scores), np.array(same, bool)) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(3))
def test_roc_of_pairs_with_ties_equals_a_loop(seed):
    a, b, is_same = pairs(num_pairs=30, seed=seed)
    b[3], a[3], b[4], a[4] = b[5], a[5], b[5], a[5]  # ties
    far, tar, thresholds = roc(a, b, is_same)
    cosine = [float(x @ y) for x, y in zip(unit(a), unit(b), strict=True)]
    for i, threshold in enumerate(thresholds):
        accepted = np.array([c >= threshold - 1e-12 for c in cosine])
        assert far[i] == pytest.approx(accepted[~is_same].mean(), abs=1e-12)
        assert tar[i] == pytest.approx(accepted[is_same].mean(), abs=1e-12)
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert (np.diff(thresholds) < 0).all()
    assert (np.diff(far) >= 0).all()
    assert (np.diff(tar) >= 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b, s: (a[:, :2], b, s), "shapes"),
        (lambda a, b, s: (a, b, s[:-1]), "shapes"),
        (lambda a, b, s: (a * 0, b, s), "length 0.0"),
        (lambda a, b, s: (a + np.nan, b, s), "length nan"),
        (lambda a, b, s: (a[:9], b[:9], s[:9]), "9 pairs"),
        (lambda a, b, s: (a * 1e200, b, s), "length inf"),
        (lambda a, b, s: (a, b, np.where(s, "1", "0")), "^is_same: must be True and False, or 1 and 0$"),
        (lambda a, b, s: (a, b, np.where(s, 1, -1)), "^is_same: must be True and False"),
        (lambda a, b, s: (a, b, np.where(s, 1, np.nan)), "^is_same: must be True and False"),
    ],
)
def test_ten_fold_accuracy_of_wrong_embeddings_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        ten_fold_accuracy(*change(*pairs()))


def test_ten_fold_accuracy_and_roc_of_wrong_folds_or_one_kind_are_refused():
    a, b, is_same = pairs()
    with pytest.raises(ValueError, match="at least 2 folds"):
        ten_fold_accuracy(a, b, is_same, np.zeros(len(a)))
    with pytest.raises(ValueError, match="one fold per pair"):
        ten_fold_accuracy(a, b, is_same, [0, 1])
    with pytest.raises(ValueError, match=r"one fold per pair.*at least 1"):
        ten_fold_accuracy(a[:0], b[:0], is_same[:0], [])
    for missing in (None, np.nan):
        with pytest.raises(ValueError, match=r"^fold: "):
            ten_fold_accuracy(a, b, is_same, [missing, *range(1, len(a))])
    with pytest.raises(ValueError, match="both genuine and impostor"):
        roc(a, b, np.ones(len(a)))


def test_thinned_roc_of_a_million_pairs_keeps_its_low_end():
    far = np.append(0, np.arange(1, 1_000_001) / 1_000_000)
    tar = far**0.1
    points = thinned(far, tar)
    assert len(points["far"]) <= 500
    assert (points["far"][0], points["far"][-1], points["tar"][-1]) == (0, 1, 1)
    for rate in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        nearest = min(range(len(points["far"])), key=lambda k: abs(points["far"][k] - rate))
        assert points["far"][nearest] == pytest.approx(rate, rel=0.1)
        assert points["tar"][nearest] == pytest.approx(rate**0.1, rel=0.02)
    assert thinned(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])) == {"far": [0, 0, 1], "tar": [0, 1, 1]}
