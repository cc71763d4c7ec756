"""Genuine pairs by identity against a loop, and intervals of TAR at fixed thresholds."""

from itertools import combinations

import numpy as np
import pytest

from rayface.evaluation import genuine_rates
from rayface.evaluation.genuine_rates import genuine_counts, tar_intervals


def drawn(identities=30, seed=0):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(identities), random.integers(1, 9, identities)))
    people = random.normal(size=(identities, 8))
    embeddings = people[labels] + random.normal(size=(len(labels), 8))
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), labels


@pytest.mark.parametrize("block", [3, 2048])
def test_genuine_counts_equal_a_loop_over_pairs(monkeypatch, block):
    monkeypatch.setattr(genuine_rates, "_BLOCK", block)
    embeddings, labels = drawn()
    rows = np.flatnonzero(np.arange(len(labels)) % 5 > 0)
    thresholds = [-np.inf, 0.0, 0.5, 0.9]
    accepted, pairs = genuine_counts(embeddings, labels, thresholds, rows=rows)
    wanted, totals = [], []
    for label in np.unique(labels):
        cosines = [embeddings[a] @ embeddings[b] for a, b in combinations(rows[labels[rows] == label], 2)]
        if cosines:
            wanted.append([sum(cosine > t for cosine in cosines) for t in thresholds])
            totals.append(len(cosines))
    assert accepted.tolist() == wanted
    assert pairs.tolist() == totals


def test_genuine_counts_at_a_cosine_equal_to_the_threshold_reject_it():
    accepted, pairs = genuine_counts(np.eye(2)[[0, 0, 1]], [5, 5, 5], [0.0, 0.5, 1.0])
    assert (accepted.tolist(), pairs.tolist()) == ([[1, 1, 0]], [3])


def test_tar_intervals_hold_the_tar_and_shrink_with_more_identities():
    widths = []
    for identities in (30, 400):
        embeddings, labels = drawn(identities)
        accepted, pairs = genuine_counts(embeddings, labels, [0.5])
        tar = accepted.sum(0) / pairs.sum()
        ((low, high),) = tar_intervals(embeddings, labels, tar, np.array([0.5]), replicates=200)
        assert low < tar[0] < high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_tar_intervals_of_one_identity_with_pairs_are_undefined():
    found = tar_intervals(np.eye(3), [0, 0, 1], np.array([0.5]), np.array([0.1]), replicates=10)
    assert np.isnan(found).all()
