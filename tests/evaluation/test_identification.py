"""True acceptance rates at false acceptance rates, against a loop over thresholds."""

import numpy as np
import pytest

from rayface.evaluation.identification import tar_at_far


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
        ([0.1], [0.1], [1.5], "between 0 and 1"),
        ([0.1], [0.1], [np.nan], "between 0 and 1"),
        ([0.1], [0.1], 0.5, "a list of rates"),
    ],
)
def test_tar_at_far_of_wrong_input_names_it(genuine, impostor, fars, words):
    with pytest.raises(ValueError, match=words):
        tar_at_far(genuine, impostor, fars)
