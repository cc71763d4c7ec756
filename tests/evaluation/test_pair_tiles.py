"""Tiles of pairs hold every unordered pair once."""

import numpy as np
import pytest

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
        genuine.append(tile.genuine().numpy())
        impostor.append(tile.scores[tile.scores > -np.inf].numpy())
        count += tile.num_pairs
    assert count == pairs.num_pairs == len(a)
    assert (pairs.num_genuine, pairs.num_impostor) == (int(same.sum()), int((~same).sum()))
    np.testing.assert_allclose(np.sort(np.concatenate(genuine)), np.sort(cosine[same]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.sort(np.concatenate(impostor)), np.sort(cosine[~same]), rtol=0, atol=1e-14)
