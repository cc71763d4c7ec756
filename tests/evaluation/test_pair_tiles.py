"""Tiles of pairs hold every unordered pair once."""

import weakref

import numpy as np
import pytest
import torch

from rayface.evaluation import pair_tiles
from rayface.evaluation.extremes import Extremes
from rayface.evaluation.pair_tiles import SCREEN_ERROR, PairTiles
from rayface.precision import full_float32


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


@pytest.mark.parametrize(
    ("shape", "count", "above"),
    [
        ((17, 7), 5, None),
        ((100, 100), 5, None),
        ((1, 1), 2000, None),
        ((1, 1), 2, None),
        ((1, 1), 1, None),
        ((1, 1), 5, 3),
    ],
)
def test_extremes_of_any_tiles_are_the_worst_pairs(shape, count, above):
    random = np.random.default_rng(0)
    embeddings, labels = random.normal(size=(60, 4)), random.integers(0, 9, 60)
    pairs, extremes = PairTiles.of(embeddings, labels), Extremes(count)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, b = np.triu_indices(60, 1)
    cosine, same = (units[a] * units[b]).sum(1), labels[a] == labels[b]
    lowest, highest = np.sort(cosine[same])[:count], np.sort(cosine[~same])[::-1][:count]
    floor = -np.inf
    if above is not None:
        floor, highest = highest[above - 1 : above + 1].mean(), highest[:above]
    for tile in pairs.tiles(shape):
        extremes.add(tile, tile.take_genuine(), floor)
    np.testing.assert_allclose([score for score, *_ in extremes.genuine], lowest, atol=1e-14)
    np.testing.assert_allclose([score for score, *_ in extremes.impostor], highest, atol=1e-14)
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
    screened = [tile for tile in pairs.tiles((64, 64), screened=True) if tile.units is not None]
    assert len(screened) == 1
    for tile in screened:
        rows, columns = (units[pairs.order[first : first + 64]] for first in (tile.first_row, tile.first_column))
        exact = rows @ columns.T
        assert np.abs(tile.scores.float().numpy() - exact).max() < SCREEN_ERROR + 2**-8  # the result is rounded, too
        floor = float(np.quantile(exact, 0.99))
        np.testing.assert_allclose(np.sort(tile.above(floor).numpy()), np.sort(exact[exact > floor]), rtol=0, atol=1e-6)
        assert len(tile.take_genuine().scores) == 0


def worst_pair(cosine: float, side: int = 1) -> np.ndarray:
    """Return two embeddings (2, 512) of a cosine whose elements are rounded by almost u, down (side 1) or up (-1)."""
    vector = np.zeros(512)
    vector[:252] = 2.0**-4 * (1 + 2.0**-8 * (1 - 0.03 * side))  # bfloat16 has 2^-4, and next 2^-4 (1 + 2^-7)
    vector[252] = np.sqrt(1 - (vector**2).sum())
    other = cosine * vector
    other[253:] = np.sqrt((1 - cosine**2) / 259)
    return np.stack([vector, other]).astype(np.float32)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("cosine", [1.0, 0.9985, 0.997, 0.5, 0.2505, -0.5])
def test_screened_tile_of_the_worst_roundings_keeps_exactly_the_pairs_above_a_floor(cosine, side):
    embeddings = worst_pair(cosine, side)
    exact = float(embeddings[0].astype(np.float64) @ embeddings[1])
    (tile,) = (tile for tile in PairTiles.of(embeddings, [0, 1]).tiles((1, 1), screened=True) if tile.num_pairs)
    assert tile.units is not None
    for below in (1e-5, 3e-4, 1e-3, 0.0025, 0.004):
        assert len(tile.above(exact - below)) == len(tile.highest(3, exact - below).scores) == 1
        assert len(tile.above(exact + below)) == 0


@pytest.mark.usefixtures("tf32_products")
def test_screened_tile_is_summed_in_float32_and_leaves_the_setting_as_it_was(monkeypatch):
    settings, mm, matmul = [], torch.mm, torch.backends.cuda.matmul

    def counted(*given, **options):
        settings.append((matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction))
        return mm(*given, **options)

    monkeypatch.setattr(torch, "mm", counted)
    monkeypatch.setattr(pair_tiles, "full_float32", lambda device: full_float32(torch.device("cuda")))
    before = matmul.allow_bf16_reduced_precision_reduction
    list(PairTiles.of(worst_pair(0.5), [0, 1]).tiles((1, 1), screened=True))
    assert settings == [("ieee", False)] * 3
    assert matmul.allow_bf16_reduced_precision_reduction == before
    assert matmul.fp32_precision == "tf32"


def test_screened_tile_of_the_worst_roundings_has_an_error_near_the_bound():
    tiles = PairTiles.of(worst_pair(1.0), [0, 1]).tiles((1, 1), screened=True)
    (score,) = (float(tile.scores[0, 0]) for tile in tiles if tile.num_pairs)
    assert score == 1 - 2**-7
    unrounded = np.square(torch.from_numpy(worst_pair(1.0)[0]).bfloat16().double().numpy()).sum()
    assert 0.9 * SCREEN_ERROR < 1 - unrounded < SCREEN_ERROR


@pytest.mark.parametrize(("size", "kind"), [(3, np.float64), (1025, np.float32)])
def test_tiles_of_double_precision_or_very_long_embeddings_cannot_be_screened(size, kind):
    assert not PairTiles.of(np.ones((2, size), kind), np.arange(2)).can_screen


def test_embeddings_on_an_accelerator_are_copied_chunk_by_chunk(monkeypatch):
    """Twice their memory would be in use while they are copied, if the chunks lived until the last one."""
    read, chunks = PairTiles._read, []

    def noted(self, *given):
        assert [chunk() for chunk in chunks[:-1]] == [None] * len(chunks[:-1])
        chunks.append(weakref.ref(found := read(self, *given)))
        return found

    monkeypatch.setattr(PairTiles, "_read", noted)
    monkeypatch.setattr(pair_tiles, "_CHUNK", 3)
    embeddings = np.random.default_rng(0).standard_normal((10, 4))
    tiles = PairTiles(embeddings, np.arange(10), np.arange(10), torch.device("meta"))
    assert len(chunks) == 4
    assert tiles._resident.shape == embeddings.shape
