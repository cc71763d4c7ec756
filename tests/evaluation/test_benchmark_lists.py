"""Lists of a benchmark: pairs in folds, hard impostors against a loop, templates, galleries and probes."""

import numpy as np
import pytest

from rayface.evaluation import benchmark_lists
from rayface.evaluation.benchmark_lists import draw_pairs, draw_templates

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(40) % 7 + 2))  # 2 to 8 images each


def drawn(embeddings=None, labels=LABELS, num_pairs=200, folds=4, hard=0.5, seed=0):
    random = np.random.default_rng(seed)
    return draw_pairs(labels, num_pairs=num_pairs, folds=folds, hard=hard, embeddings=embeddings, random=random)


def test_pairs_of_folds_are_balanced_distinct_and_share_no_identity():
    pairs = drawn()
    assert (LABELS[pairs.a] == LABELS[pairs.b]).tolist() == pairs.is_same.tolist()
    assert len({frozenset(pair) for pair in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}) == 200
    assert np.bincount(pairs.fold[pairs.is_same]).tolist() == [25] * 4
    assert np.bincount(pairs.fold[~pairs.is_same]).tolist() == [25] * 4
    people = [set(LABELS[np.r_[pairs.a, pairs.b][np.r_[pairs.fold, pairs.fold] == k]].tolist()) for k in range(4)]
    assert sum(map(len, people)) == len(set.union(*people))


def test_genuine_pairs_are_spread_evenly_over_identities_with_enough_images():
    labels = np.repeat(np.arange(8), [4, 4, 4, 4, 50, 50, 50, 50])
    pairs = drawn(labels=labels, num_pairs=32, folds=2)
    assert np.bincount(labels[pairs.a[pairs.is_same]]).tolist() == [2] * 8


def test_pairs_with_few_genuine_ones_get_as_many_impostors():
    labels = np.repeat(np.arange(20), 2)
    pairs = drawn(labels=labels, num_pairs=1000, folds=2)
    assert (pairs.is_same.sum(), (~pairs.is_same).sum()) == (20, 20)
    # so few that all impostor pairs are listed
    few = drawn(labels=np.repeat(np.arange(4), 5), num_pairs=1000, folds=2)
    assert (few.is_same.sum(), (~few.is_same).sum()) == (40, 40)


def test_pairs_of_a_seed_are_the_same_and_of_another_are_not():
    first, same, other = drawn(), drawn(), drawn(seed=1)
    np.testing.assert_array_equal(first.a, same.a)
    np.testing.assert_array_equal(first.b, same.b)
    assert first.a.tolist() != other.a.tolist()


def slow_nearest(labels, embeddings, count):
    """Compare all pairs of two identities; one pair of any two, most similar first."""
    scores = [
        (-float(embeddings[a] @ embeddings[b]), a, b)
        for a in range(len(labels))
        for b in range(a + 1, len(labels))
        if labels[a] != labels[b]
    ]
    found = {}
    for _, a, b in sorted(scores):
        found.setdefault(frozenset((labels[a], labels[b])), (a, b))
    return set(list(found.values())[:count])


def test_hard_impostors_are_the_nearest_neighbours_of_other_identities(monkeypatch):
    monkeypatch.setattr(benchmark_lists, "_BLOCK", 16)
    random = np.random.default_rng(1)
    embeddings = random.normal(size=(len(LABELS), 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = drawn(embeddings, hard=0.4)
    assert pairs.num_hard == 40
    for fold in range(4):
        of_fold = pairs.fold == fold
        images = np.unique(np.concatenate([np.flatnonzero(np.isin(LABELS, LABELS[pairs.a[of_fold]]))]))
        wanted = {(int(images[a]), int(images[b])) for a, b in slow_nearest(LABELS[images], embeddings[images], 10)}
        impostors = of_fold & ~pairs.is_same
        found = set(zip(pairs.a[impostors].tolist(), pairs.b[impostors].tolist(), strict=True))
        assert wanted <= found
        assert len(found) == 25


def test_a_fold_without_genuine_pairs_is_refused_in_one_line():
    with pytest.raises(ValueError, match="has 0 genuine and 0 impostor pairs: must have both: hold out more"):
        drawn(labels=np.arange(40))


def test_templates_divide_the_images_and_split_the_identities_between_two_galleries():
    lists = draw_templates(LABELS, size=3, random=np.random.default_rng(0))
    assert sorted(np.concatenate(lists.images).tolist()) == list(range(len(LABELS)))
    assert max(map(len, lists.images)) == 3
    for template, images in enumerate(lists.images):
        assert set(LABELS[images].tolist()) == {lists.identities[template]}
    one, two = ([lists.identities[template] for template in gallery] for gallery in lists.galleries)
    assert (len(one), len(two), len({*one, *two})) == (20, 20, 40)
    assert sorted([*lists.galleries[0], *lists.galleries[1], *lists.probes]) == list(range(len(lists.images)))
    assert {lists.identities[template] for template in lists.probes} == set(range(40))
    assert len(lists.pairs) == 40 * len(lists.probes)
    assert all(same == (lists.identities[a] == lists.identities[b]) for a, b, same in lists.pairs)
    assert sum(same for *_, same in lists.pairs) == len(lists.probes)
    assert lists.counts()["probes"] == len(lists.probes)


def test_template_of_an_identity_with_one_image_is_in_a_gallery_and_has_no_probe():
    lists = draw_templates(np.array([0, 1, 1]), size=5, random=np.random.default_rng(0))
    assert [lists.identities[template] for template in lists.probes] == [1]
    assert sorted(lists.identities[template] for gallery in lists.galleries for template in gallery) == [0, 1]


def test_template_pairs_above_the_limit_are_a_sample_with_all_genuine_ones(monkeypatch):
    monkeypatch.setattr(benchmark_lists, "MAX_TEMPLATE_PAIRS", 500)
    lists = draw_templates(LABELS, size=3, random=np.random.default_rng(0))
    assert sum(same for *_, same in lists.pairs) == len(lists.probes)
    assert 500 <= len(lists.pairs) <= 500 + len(lists.probes)
    assert len(set(lists.pairs)) == len(lists.pairs)
