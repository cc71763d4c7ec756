"""Layout of embeddings: offsets of identities, and what is refused."""

import numpy as np
import pytest

from rayface.arrays import check_embeddings, check_offsets, group_offsets


def test_group_offsets_of_adjacent_labels_are_starts_and_the_end() -> None:
    assert group_offsets([7, 7, 2, 9, 9, 9]).tolist() == [0, 2, 3, 6]
    assert group_offsets(np.zeros(0, np.int64)).tolist() == [0]


def test_group_offsets_of_scattered_labels_or_wrong_shape_raises() -> None:
    with pytest.raises(ValueError, match="labels: the rows of an identity must be adjacent: sort by label"):
        group_offsets([1, 2, 1])
    with pytest.raises(ValueError, match=r"labels shape \(1, 2\)"):
        group_offsets([[1, 2]])


@pytest.mark.parametrize(("given", "kept"), [("f2", "f2"), ("f4", "f4"), ("f8", "f8"), ("i4", "f8")])
def test_check_embeddings_of_numbers_returns_a_float_type(given: str, kept: str) -> None:
    assert check_embeddings(np.ones((2, 4), given)).dtype == kept


def test_check_embeddings_of_contiguous_floats_does_not_copy() -> None:
    values = np.ones((2, 4), np.float16)
    assert np.shares_memory(check_embeddings(values), values)
    assert check_embeddings(values[:, ::2]).flags.c_contiguous


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2]])
def test_check_offsets_that_do_not_rise_from_0_to_rows_raises(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^offsets: must rise from 0 to 2, the number of images"):
        check_offsets(offsets, 2)
