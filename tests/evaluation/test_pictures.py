"""Worst pairs and histograms of scores."""

import numpy as np

from rayface.evaluation.pictures import ScoreHistogram, pictures_of


def test_pictures_of_pairs_are_the_lowest_genuine_and_highest_impostor_scores() -> None:
    score = np.array([0.9, 0.1, 0.5, -0.2, 0.8, 0.3])
    same = np.array([True, True, True, False, False, False])
    a = np.arange(6)
    found = pictures_of("set", score, same, a, a + 1, [f"n{i}" for i in range(7)]).as_dict()
    assert found["worst"]["genuine"][0] == {"a": "n1", "b": "n2", "score": 0.1}
    assert [pair["score"] for pair in found["worst"]["genuine"]] == [0.1, 0.5, 0.9]
    assert [pair["score"] for pair in found["worst"]["impostor"]] == [0.8, 0.3, -0.2]
    assert sum(found["histogram"]["genuine"]) == sum(found["histogram"]["impostor"]) == 3


def test_score_histogram_of_constant_scores_counts_all() -> None:
    histogram = ScoreHistogram.of(np.full(4, 0.5), np.full(2, 0.5))
    assert histogram.genuine.sum() == 4
    assert histogram.impostor.sum() == 2


def test_score_histogram_of_n_scores_has_about_root_n_bins() -> None:
    for count, bins in ((100, 14), (3000, 60), (0, 1)):
        assert len(ScoreHistogram.of(np.linspace(0.4, 1, count), np.linspace(-0.2, 0.3, count)).genuine) == bins
