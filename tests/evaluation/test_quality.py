"""Error versus discard, against a loop over rejected pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rayface.evaluation.quality import REJECTED, discard_curve, error_versus_discard
from tests.evaluation.test_pair_scores import some_scores


def drawn(num_pairs=300):
    random = np.random.default_rng(0)
    quality = random.random(num_pairs)
    is_same = random.random(num_pairs) < 0.5
    score = is_same * quality + random.normal(0, 0.2, num_pairs)
    return quality, score, is_same, (score > 0.4) == is_same


def slow_curve(quality, score, is_same, is_right, threshold):
    rows = sorted(zip(quality, score, is_same, is_right, strict=True), key=lambda row: row[0])
    for share in REJECTED:
        kept = rows[int(share * len(rows) + 1e-9) :]
        genuine = [s for _, s, same, _ in kept if same]
        yield sum(s <= threshold for s in genuine) / len(genuine), sum(not right for *_, right in kept) / len(kept)


@pytest.mark.parametrize("num_pairs", [300, 37])
def test_error_versus_discard_equals_a_loop_and_falls_with_a_good_quality(num_pairs):
    pairs = drawn(num_pairs)
    curve = error_versus_discard(*pairs, threshold=0.4, far=0.01)
    wanted = np.array(list(slow_curve(*pairs, 0.4)))
    np.testing.assert_allclose(np.stack([curve.fnmr, curve.error], axis=1), wanted)
    assert curve.fnmr[-1] < 0.5 * curve.fnmr[0]
    assert (curve.rejected[0], curve.rejected[-1]) == (0, 0.5)


def test_error_versus_discard_without_genuine_pairs_left_is_none():
    curve = error_versus_discard([1, 2, 3, 4], [0.9, 0.8, 0.1, 0.2], [1, 1, 0, 0], [1, 1, 1, 1], threshold=0.5, far=0.1)
    found = json.loads(json.dumps(curve.as_dict()))
    assert (found["far"], found["fnmr"][0], found["fnmr"][-1], found["error"][-1]) == (0.1, 0.0, None, 0.0)


def test_error_versus_discard_counts_a_genuine_score_equal_to_the_threshold_as_missed():
    curve = error_versus_discard([1, 2], [0.5, 0.9], [1, 1], [0, 1], threshold=0.5, far=0.1)
    assert (curve.fnmr[0], curve.fnmr[-1]) == (0.5, 0.0)


def test_discard_curve_of_pairs_takes_the_threshold_of_the_lowest_rate():
    scores = some_scores()
    curve, reason = discard_curve(scores, {"1e-01": 0.5, "1e-02": 0.9})
    assert (curve.far, reason) == (0.01, "")
    genuine = scores.score[scores.is_same]
    assert curve.fnmr[0] == np.mean(genuine <= 0.9)
    assert curve.error[0] == np.mean(~scores.is_right)


@pytest.mark.parametrize(
    ("quality", "thresholds", "words"),
    [
        (np.nan, {"1e-02": 0.9}, "norms of the raw embeddings are not known"),
        ([np.nan, *range(199)], {"1e-02": 0.9}, "norms of the raw embeddings are not known"),
        (np.linspace(1, 1 + 5e-6, 200), {"1e-02": 0.9}, "all images have the norm 1: the model normalises its output"),
        (1.0, {"1e-02": 0.9}, "all images have the norm 1: the model normalises its output"),
        (None, {}, "too few impostor pairs"),
    ],
)
def test_discard_curve_without_a_quality_or_a_threshold_gives_the_reason(quality, thresholds, words):
    scores = some_scores()
    if quality is not None:
        scores = replace(scores, quality=np.broadcast_to(np.float32(quality), scores.score.shape))
    curve, reason = discard_curve(scores, thresholds)
    assert curve is None
    assert words in reason
