"""Tiles of pairs hold every unordered pair once."""

import numpy as np
import pytest

from rayface.evaluation.extremes import Extremes
from rayface.evaluation.pair_tiles import PairTiles


@pytest.mark.parametrize("shape", [(7, 3), (5, 5), (4, 9), (100, 100)])
@pytest.mark.parametrize("rows", [None, np.arange(3, 25, 2)])
def test_tiles_of_any_shape_hold_every_pair_once(shape, rows):
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(31, 4)), random.choice(["x", "y", "z"], 31)
    pairs = PairTiles.of(embeddings, labels, rows=rows)
    own = np.arange(31) if rows is None else rows
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, b = (own[side] for side in np.triu_indices(len(own), 1))
    cosine, same = (units[a] * units[b]).sum(1), labels[a] == labels[b]
    genuine, impostor, count = [], [], 0
    for tile in pairs.tiles(shape):
        taken = tile.take_genuine()
        assert (tile.row_labels[taken.rows] == tile.column_labels[taken.columns]).all()
        genuine.append(taken.scores.numpy())
        impostor.append(tile.scores[tile.scores > -np.inf].numpy())
        count += tile.num_pairs
    assert count == pairs.num_pairs == len(a)
    assert (pairs.num_genuine, pairs.num_impostor) == (int(same.sum()), int((~same).sum()))
    np.testing.assert_allclose(np.sort(np.concatenate(genuine)), np.sort(cosine[same]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.sort(np.concatenate(impostor)), np.sort(cosine[~same]), rtol=0, atol=1e-14)


def test_sample_genuine_of_many_pairs_has_the_mean_of_all():
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(40, 4)), random.integers(0, 6, 40)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, b = np.triu_indices(40, 1)
    cosine = (units[a] * units[b]).sum(1)[labels[a] == labels[b]]
    sample = PairTiles.of(embeddings, labels).sample_genuine(40_000)
    assert abs(sample.mean() - cosine.mean()) < 4 * cosine.std() / 200
    assert np.abs(sample[:, None][:500] - cosine).min(1).max() < 1e-12


def test_extremes_of_small_tiles_are_the_worst_pairs():
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(60, 4)), random.integers(0, 9, 60)
    pairs, extremes = PairTiles.of(embeddings, labels), Extremes(5)
    for tile in pairs.tiles((17, 7)):
        extremes.add(tile, tile.take_genuine())
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, b = np.triu_indices(60, 1)
    cosine, same = (units[a] * units[b]).sum(1), labels[a] == labels[b]
    np.testing.assert_allclose([score for score, *_ in extremes.genuine], np.sort(cosine[same])[:5], atol=1e-14)
    np.testing.assert_allclose([score for score, *_ in extremes.impostor], np.sort(cosine[~same])[:-6:-1], atol=1e-14)
    for score, i, j in [*extremes.genuine, *extremes.impostor]:
        assert abs(units[pairs.order[i]] @ units[pairs.order[j]] - score) < 1e-12
