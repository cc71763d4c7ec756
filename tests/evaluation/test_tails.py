"""Order statistics of counted scores, against a sorted list."""

import numpy as np
import pytest

from rayface.evaluation import tails
from rayface.evaluation.tails import Bracket, Multiset


@pytest.mark.parametrize("pending", [10, 10_000])
def test_multiset_of_scores_in_many_parts_equals_a_sorted_list(pending, monkeypatch):
    monkeypatch.setattr(tails, "_PENDING", pending)
    random = np.random.default_rng(0)
    scores, found = random.normal(size=500).round(1).astype(np.float32), Multiset()
    for part in np.array_split(scores, 37):
        found.add(part)
    ordered = np.sort(scores)[::-1]
    assert len(found) == 500
    assert [found.highest(rank) for rank in (0, 1, 250, 499)] == ordered[[0, 1, 250, 499]].tolist()
    assert [found.above(t) for t in (-np.inf, 0.1, 9.0)] == [500, int((scores > 0.1).sum()), 0]


def test_bracket_without_its_rank_is_no_hit():
    bracket = Bracket(rank=2, low=0.0, high=0.5, above=3)
    bracket.inside.add(np.array([0.1, 0.2]))
    assert not bracket.is_hit()
    bracket.above = 1
    assert bracket.is_hit()
    assert bracket.threshold() == 0.1
