"""Unit embeddings, centers of identities and cosines to them, against float64 loops."""

import itertools
from typing import Any

import numpy as np
import pytest

from rayface.curate import cosines as module
from rayface.curate.cosines import identity_centers, unit_blocks, unit_rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_rows_of_any_type_are_of_length_one_in_float64(drawn: Any, dtype: Any) -> None:
    embeddings, _ = drawn([9], size=16, dtype=dtype)
    rows = np.array([[3, 0], [8, 3]])
    found = unit_rows(embeddings, rows)
    assert (found.shape, found.dtype) == ((2, 2, 16), np.float64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    wide = embeddings[rows].astype(np.float64)
    np.testing.assert_allclose(found, wide / np.linalg.norm(wide, axis=-1, keepdims=True))


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinity in it"), (np.inf, "NaN or infinity in it"), (0, "all zeros")]
)
def test_unit_rows_without_a_direction_name_the_row(value: float, message: str) -> None:
    embeddings = np.ones((5, 4), np.float32)
    embeddings[3] = value
    with pytest.raises(ValueError, match=rf"^embeddings row 3: {message}: leave the image out or embed it again$"):
        unit_rows(embeddings, np.array([1, 3]))


def test_unit_blocks_of_many_rows_are_bounded_and_in_order(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    embeddings, _ = drawn([10], size=8)
    blocks = list(unit_blocks(embeddings))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), unit_rows(embeddings, np.arange(10)))


@pytest.mark.parametrize("block", [3, 7, 4096])
def test_identity_centers_in_any_blocks_are_means_of_unit_embeddings(
    drawn: Any, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """An identity larger than a block among them."""
    monkeypatch.setattr(module, "_BLOCK", block)
    embeddings, offsets = drawn([2, 1, 20, 3, 3, 1], size=8)
    centers, cosines = identity_centers(embeddings, offsets)
    assert centers.dtype == np.float32
    for k, (first, last) in enumerate(itertools.pairwise(offsets)):
        units = unit_rows(embeddings, np.arange(first, last))
        mean = units.mean(axis=0)
        mean /= np.linalg.norm(mean)
        np.testing.assert_allclose(centers[k], mean, atol=1e-6)
        np.testing.assert_allclose(cosines[first:last], units @ mean, atol=1e-12)


def test_identity_centers_of_opposite_images_are_zero_with_cosines_of_zero() -> None:
    centers, cosines = identity_centers(np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]]), np.array([0, 2, 3]))
    assert centers.tolist() == [[0, 0], [0, 1]]
    assert cosines.tolist() == [0, 0, 1]
    centers, cosines = identity_centers(np.array([[1.0, 0.01], [-1.0, 0.01]]), np.array([0, 2]))  # nearly opposite
    assert centers.tolist() == [[0, 1]]
    assert cosines == pytest.approx(0.01, rel=1e-3)
