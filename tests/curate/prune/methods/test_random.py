"""Random selection: seeded, and independent of the other identities."""

import numpy as np

from rayface.curate.prune.methods.quota import quotas
from rayface.curate.prune.methods.random import random


def test_random_with_a_seed_keeps_the_same_share_of_every_identity() -> None:
    """Another seed selects other images."""
    labels = np.repeat(np.arange(100), 20)
    quota = quotas(np.full(100, 20), 0.6)
    found = random(labels, quota, seed=3)
    assert found.kept.reshape(100, 20).sum(axis=1).tolist() == [12] * 100
    assert all((a == b).all() for a, b in zip(found, random(labels, quota, seed=3), strict=True))
    assert (found.kept != random(labels, quota, seed=4).kept).any()
    assert (random(labels[400:600], quota[20:30], seed=3).kept == found.kept[400:600]).all()  # whoever else is there
    assert abs(found.score.mean() - 0.5) < 0.02
    assert len(np.unique(found.score)) > 1990
    assert (found.suppressed_by == -1).all()
    kept, dropped = found.score[:20][found.kept[:20]], found.score[:20][~found.kept[:20]]
    assert kept.min() > dropped.max()
    few = quotas(np.full(100, 20), 0.05, min_images=3)
    assert random(labels, few).kept.reshape(100, 20).sum(axis=1).tolist() == [3] * 100
