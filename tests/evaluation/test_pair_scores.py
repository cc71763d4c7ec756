"""Pair scores on disk, the identities of pairs, and intervals of a verification's figures."""

import numpy as np
import pytest

from rayface.evaluation.pair_scores import (
    PairScores,
    pair_identities,
    read_pair_scores,
    write_pair_scores,
)
from rayface.models.run_files import PAIR_SCORES


def some_scores(num_pairs=200, noise=0.5, seed=0):
    """Draw pairs of 20 identities, alternately genuine and impostor, with cosines around 1 and 0."""
    random = np.random.default_rng(7)
    identity_a = random.integers(0, 20, num_pairs)
    is_same = np.arange(num_pairs) % 2 == 0
    identity_b = np.where(is_same, identity_a, (identity_a + random.integers(1, 20, num_pairs)) % 20)
    score = is_same + np.random.default_rng(seed).normal(0, noise, num_pairs)
    return PairScores(
        path_a=[f"{a}/{i}_a.jpg" for i, a in enumerate(identity_a)],
        path_b=[f"{b}/{i}_b.jpg" for i, b in enumerate(identity_b)],
        is_same=is_same,
        fold=np.arange(num_pairs) * 10 // num_pairs,
        score=score,
        accepted=score > 0.5,
        identity_a=identity_a,
        identity_b=identity_b,
        quality=np.random.default_rng(seed).uniform(5, 25, num_pairs).astype(np.float32),
    )


def test_pair_scores_that_are_written_are_read_again(tmp_path):
    scores = some_scores()
    write_pair_scores(str(tmp_path), {"lfw": scores, "cfp_fp": some_scores(30)})
    found = read_pair_scores(str(tmp_path))
    assert list(found) == ["lfw", "cfp_fp"]
    assert found["lfw"].as_table("lfw").equals(scores.as_table("lfw"))
    assert len(found["cfp_fp"].score) == 30


def test_pair_scores_of_no_protocol_write_nothing(tmp_path):
    write_pair_scores(str(tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_pair_scores_of_no_protocol_delete_those_of_before(tmp_path):
    write_pair_scores(str(tmp_path), {"lfw": some_scores()})
    write_pair_scores(str(tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_pair_scores_that_are_missing_or_corrupt_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=f"has no {PAIR_SCORES}: must be a run directory"):
        read_pair_scores(str(tmp_path))
    (tmp_path / PAIR_SCORES).write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=f"{PAIR_SCORES}: is corrupt"):
        read_pair_scores(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([5, 5, 5, 9, 9, 7, 7], [0, 0, 0, 1, 1, 2, 2]),  # image 2 is in no genuine pair: its label tells
        ([5, 5, 5, 9, 8, 7, 7], [0, 0, 0, 1, 1, 2, 2]),  # one person under two labels: a genuine pair tells
        ([0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 2, 2, 3, 4]),  # not labels of identities: an impostor pair would be one
        (None, [0, 0, 1, 2, 2, 3, 4]),
    ],
)
def test_identities_of_pairs_come_from_labels_that_agree_and_from_genuine_pairs(labels, wanted):
    a, b, is_same = [0, 3, 2, 5], [1, 4, 4, 0], [True, True, False, False]
    found = pair_identities(labels, [*a, 6], [*b, 0], [*is_same, False])
    _, first, numbers = np.unique(found, return_index=True, return_inverse=True)
    assert np.argsort(np.argsort(first))[numbers].tolist() == wanted


def test_intervals_of_pairs_hold_the_figures_and_shrink_with_more_pairs():
    widths = []
    for num_pairs in (200, 4000):
        scores = some_scores(num_pairs)
        accuracy = float(scores.is_right.mean())
        bootstrap = scores.bootstrap(200)
        low, high = bootstrap.rate_interval(accuracy, scores.accuracies(bootstrap))
        assert low < accuracy < high
        found = bootstrap.far_intervals(scores.score, scores.is_same, {"1e-01": 0.7})
        assert found.tar["1e-01"].low < found.tar["1e-01"].high
        assert found.threshold["1e-01"].low < 0.64 < found.threshold["1e-01"].high  # the 90 % quantile of N(0, 0.5)
        assert found.figures()["tar_at_far_interval"] == {"1e-01": list(found.tar["1e-01"])}
        widths.append(high - low)
    assert widths[1] < widths[0]
