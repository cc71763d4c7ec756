"""Layout of embeddings: offsets of identities, and what is refused."""

import numpy as np
import pytest

from rayface.arrays import check_embeddings, check_offsets, group_offsets, identities_of, row_norms


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


@pytest.mark.parametrize(
    ("given", "values", "kind"),
    [
        ([3, 1], [3, 1], "numbers"),
        (np.array([3, 1], object), [3, 1], "numbers"),
        (["b", "a"], ["b", "a"], "strings"),
        (np.array(["b", "a"], object), ["b", "a"], "strings"),
        ([b"b"], [b"b"], "bytes"),
        ([2**70, 1], [2**70, 1], "numbers"),
        ([], [], "numbers"),
    ],
)
def test_identities_of_one_type_are_an_array_and_their_kind(given: object, values: list[object], kind: str) -> None:
    found, found_kind = identities_of(given, "ids")
    assert (found.tolist(), found_kind) == (values, kind)


@pytest.mark.parametrize("given", [[1, None], ["a", None], [1.0, np.nan], np.array(["2026-01-01"], "M8[D]")])
def test_identities_of_missing_or_other_values_are_refused_in_one_line(given: object) -> None:
    with pytest.raises(ValueError, match=r"^ids: ") as caught:
        identities_of(given, "ids")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "scale"), [("f2", 0.5), ("f4", 1e25), ("f4", 1e-30), ("f8", 3.0)])
def test_row_norms_of_any_length_are_those_in_float64(kind: str, scale: float) -> None:
    rows = (np.array([[3.0, 4.0], [0.0, 1.0]]) * scale).astype(kind)
    np.testing.assert_allclose(row_norms(rows), np.array([5, 1]) * scale, rtol=1e-6)
