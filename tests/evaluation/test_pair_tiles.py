"""Tiles of pairs hold every unordered pair once."""

import numpy as np
import pytest

from rayface.evaluation.extremes import Extremes
from rayface.evaluation.pair_tiles import SCREEN_ERROR, PairTiles


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


@pytest.mark.parametrize("kind", ["normal", "one large element"])
def test_screened_tiles_have_scores_within_the_bound_of_the_cosines(kind):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(128, 512)).astype(np.float32)
    if kind == "one large element":
        embeddings[:, 0] = 100 * random.choice([-1, 1], 128)  # hits the roundings of the vectors and of the result
    pairs = PairTiles.of(embeddings, np.arange(128) // 2)
    units = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    errors = []
    for tile in pairs.tiles((64, 64), screened=True):
        if tile.units is None:
            continue
        rows, columns = (units[pairs.order[first : first + 64]] for first in (tile.first_row, tile.first_column))
        exact = rows @ columns.T
        errors.append(np.abs(tile.scores.float().numpy() - exact).max())
        floor = float(np.quantile(exact, 0.99))
        np.testing.assert_allclose(np.sort(tile.above(floor).numpy()), np.sort(exact[exact > floor]), rtol=0, atol=1e-6)
        assert len(tile.take_genuine().scores) == 0
    assert len(errors) == 1
    assert max(errors) < SCREEN_ERROR


@pytest.mark.parametrize(("size", "kind"), [(3, np.float64), (1025, np.float32)])
def test_tiles_of_double_precision_or_very_long_embeddings_cannot_be_screened(size, kind):
    assert not PairTiles.of(np.ones((2, size), kind), np.arange(2)).can_screen
