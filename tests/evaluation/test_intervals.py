"""Intervals by the bootstrap over identities, against repeated pairs, a loop over folds, and known rates."""

import numpy as np
import pytest

from rayface.evaluation.identification import tar_at_far
from rayface.evaluation.intervals import IdentityBootstrap, Interval, percentiles

A = np.array([0, 0, 1, 2, 3, 3, 0, 1, 2, 0, 4, 4])
B = np.array([0, 0, 1, 2, 3, 3, 1, 2, 3, 3, 4, 0])
SAME = A == B


def all_weights(bootstrap):
    return np.concatenate(list(bootstrap.weights()))


def test_weights_of_pairs_are_the_products_of_their_identities_draws():
    weights = all_weights(IdentityBootstrap(A, B, replicates=50))
    draws = weights[:, [0, 2, 3, 4, 10]]  # a genuine pair of each identity
    assert (draws.sum(1) == 5).all()
    for pair, (a, b) in enumerate(zip(A, B, strict=True)):
        wanted = draws[:, a] if a == b else draws[:, a] * draws[:, b]
        np.testing.assert_array_equal(weights[:, pair], wanted)


def test_weights_of_named_identities_equal_those_of_numbers_and_of_small_blocks(monkeypatch):
    wanted = all_weights(IdentityBootstrap(A, B, replicates=20))
    np.testing.assert_array_equal(
        all_weights(IdentityBootstrap([f"p{a}" for a in A], [f"p{b}" for b in B], replicates=20)), wanted
    )
    assert (all_weights(IdentityBootstrap(A, B, replicates=20, seed=1)) != wanted).any()
    monkeypatch.setattr("rayface.evaluation.intervals._BLOCK", 40)  # three replicates at a time
    np.testing.assert_array_equal(all_weights(IdentityBootstrap(A, B, replicates=20)), wanted)


@pytest.mark.parametrize("ties", [False, True])
def test_at_far_of_replicates_equals_tar_at_far_of_repeated_pairs(ties):
    random = np.random.default_rng(3)
    a, b = random.integers(0, 12, (2, 300))
    same = a == b
    score = random.normal(same * 1.0, 1)
    score = score.round(1) if ties else score
    fars = [0.0, 0.01, 0.1, 0.29, 0.5, 1.0]
    bootstrap = IdentityBootstrap(a, b, replicates=40)
    found = bootstrap.at_far(score, same, fars)
    for weights, tars, thresholds in zip(all_weights(bootstrap), *found, strict=True):
        repeated, is_same = np.repeat(score, weights.astype(int)), np.repeat(same, weights.astype(int))
        genuine, impostor = repeated[is_same], repeated[~is_same]
        np.testing.assert_allclose(tars, tar_at_far(genuine, impostor, fars), rtol=1e-12)
        for far, tar, threshold in zip(fars, tars, thresholds, strict=True):
            assert np.mean(impostor > threshold) <= far
            assert np.mean(genuine > threshold) == pytest.approx(tar)
            # The next lower threshold would accept too many.
            assert threshold == -np.inf or np.mean(impostor >= threshold) > far


def test_shares_of_folds_equal_a_loop_over_replicates_folds_and_kinds():
    """A pair counts by its fold, 3, 4 or 5 pairs; each kind counts as in the list, whatever is drawn."""
    hits, folds = np.arange(12) % 3 > 0, np.repeat([4, 7, 9], [3, 4, 5])
    parts = np.repeat([1 / 9, 1 / 12, 1 / 15], [3, 4, 5])
    bootstrap = IdentityBootstrap(A, B, replicates=60)
    for weights, share in zip(all_weights(bootstrap), bootstrap.shares(hits, folds, SAME), strict=True):
        wanted = 0.0
        for kind in (SAME, ~SAME):
            own = weights[kind] * parts[kind]
            wanted += parts[kind].sum() * (own[hits[kind]].sum() / own.sum() if own.any() else np.nan)
        assert share == pytest.approx(wanted, nan_ok=True)


def test_accuracy_of_replicates_is_unbiased_in_folds_of_two_identities():
    """Most replicates lack one of a fold's two identities, and with it all impostor pairs of the fold."""
    fold = np.repeat(np.arange(10), 20)
    is_same = np.tile(np.arange(20) < 10, 10)
    a = 2 * fold + np.tile(np.arange(20) % 2, 10)
    b = np.where(is_same, a, a ^ 1)
    is_right = np.where(is_same, np.arange(200) % 10 == 0, True)  # a tenth or none of genuine pairs, all impostors
    bootstrap = IdentityBootstrap(a, b)
    shares = bootstrap.shares(is_right, fold, is_same)
    assert np.nanmean(shares) == pytest.approx(is_right.mean(), abs=0.005)
    low, high = bootstrap.rate_interval(float(is_right.mean()), shares)
    assert low < is_right.mean() < high


def test_rate_interval_covers_the_true_rate_where_a_bootstrap_over_pairs_does_not():
    """Identities differ in their error rate, so the pairs of one identity fail together."""
    random = np.random.default_rng(0)
    covered = {"identities": 0, "pairs": 0}
    for _ in range(100):
        identity = np.repeat(np.arange(50), 10)
        hits = random.random(500) < random.beta(4.0, 1.0, 50)[identity]  # 0.8 on average
        for name, unit in (("identities", identity), ("pairs", np.arange(500))):
            bootstrap = IdentityBootstrap(unit, replicates=200)
            low, high = bootstrap.rate_interval(float(hits.mean()), bootstrap.shares(hits))
            covered[name] += low <= 0.8 <= high
    assert covered["identities"] >= 90
    assert covered["pairs"] <= 85


def test_rate_interval_of_impostor_pairs_covers_the_true_rate():
    """A pair fails more often if either of its identities is easily confused."""
    random = np.random.default_rng(1)
    a, b = np.triu_indices(30, 1)
    covered = 0
    for _ in range(60):
        level = random.normal(0, 0.5, 30)
        hits = level[a] + level[b] + random.normal(0, 0.5**0.5, len(a)) < 1  # standard normal: 0.8413
        bootstrap = IdentityBootstrap(a, b, replicates=200)
        low, high = bootstrap.rate_interval(float(hits.mean()), bootstrap.shares(hits))
        covered += low <= 0.841345 <= high
    assert covered >= 53


def test_rate_interval_without_errors_is_that_of_clopper_and_pearson():
    bootstrap = IdentityBootstrap(np.arange(100))
    assert bootstrap.rate_interval(1.0, np.ones(5)) == pytest.approx((0.025**0.01, 1.0))
    assert bootstrap.rate_interval(0.0, np.zeros(5)) == pytest.approx((0.0, 1 - 0.025**0.01))


def test_tar_interval_without_errors_counts_identities_of_genuine_pairs_only():
    """Ten identities, but genuine pairs of three: TAR 1 rests on three trials, not on ten."""
    a, b = np.triu_indices(10, 1)
    first, second = np.concatenate([a, [0, 0, 1, 2]]), np.concatenate([b, [0, 0, 1, 2]])
    score, is_same = np.where(first == second, 0.9, 0.1), first == second
    bootstrap = IdentityBootstrap(first, second, replicates=50)
    found = bootstrap.far_intervals(score, is_same, {"1e-01": 1.0})
    assert found.tar["1e-01"] == pytest.approx((0.025 ** (1 / 3), 1.0))
    assert bootstrap.rate_interval(0.0, np.zeros(5), is_same) == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))
    assert bootstrap.rate_interval(1.0, np.ones(5)) == pytest.approx((0.025**0.1, 1.0))


def test_tar_interval_of_one_genuine_identity_is_undefined():
    bootstrap = IdentityBootstrap([0, 0, 1, 2], [0, 0, 2, 3], replicates=50)
    found = bootstrap.far_intervals([0.9, 0.3, 0.4, 0.1], [True, True, False, False], {"5e-01": 0.5})
    assert np.isnan(found.tar["5e-01"]).all()


def test_rate_interval_of_one_identity_is_undefined():
    bootstrap = IdentityBootstrap([1, 1, 1])
    assert np.isnan(bootstrap.rate_interval(0.5, bootstrap.shares([True, False, True]))).all()
    assert np.isnan(bootstrap.interval(np.array([0.1, 0.2]))).all()


def test_rate_interval_of_an_undefined_rate_is_undefined():
    assert np.isnan(IdentityBootstrap([1, 2, 3]).rate_interval(np.nan, np.array([0.1, 0.2]))).all()


def test_percentiles_of_undefined_replicates_leave_them_out():
    assert np.isnan(percentiles(np.array([np.nan]))).all()
    assert percentiles(np.array([np.nan, -np.inf, 1.0])) == Interval(-np.inf, 1.0)


@pytest.mark.parametrize("same", [[True, True, False], [False, True, False]])
def test_at_far_of_a_replicate_without_impostors_or_genuine_pairs_is_undefined(same):
    bootstrap = IdentityBootstrap([0, 1, 0], [0, 1, 1], replicates=30)
    weights = all_weights(bootstrap)
    undefined = (weights @ same == 0) | (weights @ np.logical_not(same) == 0)
    assert 0 < undefined.sum() < 30
    for figure in bootstrap.at_far([0.9, 0.8, 0.1], same, [0.1]):
        np.testing.assert_array_equal(np.isnan(figure[:, 0]), undefined)


def test_ratios_of_identities_equal_a_loop_over_replicates():
    random = np.random.default_rng(0)
    totals = random.integers(1, 20, 15)
    hits = random.binomial(totals[:, None], [0.2, 0.9], (15, 2))
    bootstrap = IdentityBootstrap(np.arange(15), replicates=25)
    for weights, ratio in zip(all_weights(bootstrap), bootstrap.ratios(hits, totals), strict=True):
        np.testing.assert_allclose(ratio, (weights[:, None] * hits).sum(0) / (weights * totals).sum())


def test_bootstrap_of_a_long_list_has_fewer_replicates(monkeypatch):
    for most, wanted in ((10**9, 300), (250 * 12, 250), (1, 100)):
        monkeypatch.setattr("rayface.evaluation.intervals._MOST_WEIGHTS", most)
        assert len(all_weights(IdentityBootstrap(A, B, replicates=300))) == wanted


@pytest.mark.parametrize("a", [[], [[1, 2]]])
def test_identities_of_wrong_shape_are_refused(a):
    with pytest.raises(ValueError, match="identities have shapes"):
        IdentityBootstrap(a)


@pytest.mark.parametrize(
    ("a", "b"), [(["x", None], ["x", "y"]), ([1.0, np.nan], [1.0, 2.0]), (["1", "2"], [1, 2])], ids=str
)
def test_identities_that_are_missing_or_of_two_types_are_refused(a, b):
    with pytest.raises(ValueError, match=r"^(a: |identities are strings in a and numbers in b)"):
        IdentityBootstrap(a, b)
