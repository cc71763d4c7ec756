"""What cleaning drops and merges for what it found, and the tables that list it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayface.curate.clean.findings import (
    DROPS,
    REASONS,
    Found,
    copies_of,
    far_from_mean,
    findings,
    merged_labels,
    reason_column,
    reasons,
)
from rayface.curate.clean.pair_search import Pairs, no_pairs

BOUNDS = np.array([0, 3, 5, 6])  # three identities of 3, 2 and 1 images
COSINES = np.array([0.9, 0.2, 0.8, 0.5, 0.6, 1.0])


def pairs(*rows: tuple[int, int, float]) -> Pairs:
    left, right, cosines = zip(*rows, strict=True)
    return np.array(left), np.array(right), np.array(cosines)


def found(**changes: Any) -> Found:
    none = dict.fromkeys(("duplicates", "conflicts", "copies", "overlap"), no_pairs())
    return Found(**{"outliers": np.zeros(0, np.int64), **none, **changes})


def dropped(given: Found, *drop: str) -> list[str | None]:
    return reason_column(reasons(given, drop, COSINES, BOUNDS)).to_pylist()


def test_far_from_mean_without_a_cosine_finds_nothing() -> None:
    assert far_from_mean(COSINES, 0.6).tolist() == [1, 3]
    assert far_from_mean(COSINES, None).tolist() == []


def test_copies_of_equal_digests_keep_the_one_nearest_to_its_mean_else_the_first() -> None:
    rows, others, cosines = copies_of(np.array([7, 8, 7, 8, 9, 7]), np.array([0.5, 0.3, 0.54, 0.3, 1.0, 0.1]))
    assert list(zip(rows.tolist(), others.tolist(), strict=True)) == [(0, 2), (3, 1), (5, 2)]
    assert cosines.tolist() == [1, 1, 1]
    assert [side.tolist() for side in copies_of(np.zeros(0), np.zeros(0))] == [[], [], []]


def test_copies_of_equal_digests_whose_cosines_differ_by_rounding_keep_the_first() -> None:
    rows, others, _ = copies_of(np.array([7, 7, 7]), np.array([0.5, 0.5 + 1e-13, 0.5 - 1e-13]))
    assert list(zip(rows.tolist(), others.tolist(), strict=True)) == [(1, 0), (2, 0)]


def test_reasons_of_nothing_to_drop_keep_every_image() -> None:
    given = found(outliers=np.array([1]), conflicts=pairs((0, 5, 0.9)))
    assert dropped(given) == [None] * 6
    assert dropped(given, "bytes") == [None] * 6


def test_reasons_of_an_image_with_several_are_the_first_of_the_order() -> None:
    given = found(outliers=np.array([1]), copies=pairs((1, 0, 1.0)), conflicts=pairs((1, 3, 0.9)))
    assert dropped(given, *DROPS) == [None, "same bytes", None, None, None, None]
    assert dropped(given, "outliers", "conflicts") == [None, "outlier", None, None, None, None]


def test_reasons_of_a_conflict_drop_the_image_that_is_farther_from_its_mean() -> None:
    assert dropped(found(conflicts=pairs((2, 3, 0.9))), "conflicts")[3] == "conflict"
    assert dropped(found(conflicts=pairs((1, 4, 0.9))), "conflicts")[1] == "conflict"


def test_reasons_of_a_conflict_of_images_as_far_from_their_means_drop_the_later() -> None:
    cosines = np.array([0.9, 0.2, 0.8, 0.9, 0.6, 1.0])
    why = reasons(found(conflicts=pairs((0, 3, 0.95))), ("conflicts",), cosines, BOUNDS)
    assert reason_column(why).to_pylist() == [None, None, None, "conflict", None, None]


def test_reasons_for_all_images_of_an_identity_keep_the_nearest_unless_it_is_a_test_identity() -> None:
    given = found(outliers=np.array([3, 4, 5]), overlap=pairs((0, 0, 0.99)))
    assert dropped(given, "outliers") == [None, None, None, "outlier", None, None]
    assert dropped(given, "outliers", "test") == ["in the test set"] * 3 + ["outlier", None, None]


def test_merged_labels_of_a_chain_take_the_lowest_label() -> None:
    names = np.array([40, 30, 20, 10, 50])
    merged = merged_labels(names, pairs((0, 1, 0.9), (1, 2, 0.9)))
    assert merged.tolist() == [20, 20, 20, 10, 50]
    assert merged_labels(names, no_pairs()).tolist() == names.tolist()


def test_findings_list_the_worst_first_with_keys_labels_and_counts() -> None:
    given = found(
        outliers=np.array([3, 1]),
        duplicates=pairs((0, 2, 0.7), (1, 2, 0.8)),
        conflicts=pairs((0, 3, 0.6), (2, 5, 0.9)),
        copies=pairs((2, 0, 1.0)),
        overlap=pairs((1, 0, 0.95)),
    )
    why = reasons(given, ("outliers", "bytes"), COSINES, BOUNDS)
    keys, names = pa.array(list("abcdef")), np.array([9, 4, 7])
    listed = findings(given, why, lambda rows: keys.take(pa.array(rows)), names, BOUNDS, COSINES, np.array([77]))
    assert listed.outliers.to_pylist() == [
        {"key": "b", "label": 9, "cosine": 0.2},
        {"key": "d", "label": 4, "cosine": 0.5},
    ]
    assert listed.duplicates.to_pylist() == [
        {"label": 4, "other_label": 7, "cosine": 0.8},
        {"label": 7, "other_label": 9, "cosine": 0.7},
    ]
    assert [tuple(row.values()) for row in listed.conflicts.to_pylist()] == [
        ("c", 9, "f", 7, 0.9),
        ("a", 9, "d", 4, 0.6),
    ]
    assert listed.bytes.to_pylist() == [{"key": "c", "label": 9, "other_key": "a", "other_label": 9}]
    assert listed.test.to_pylist() == [{"label": 4, "test_label": 77, "cosine": 0.95}]
    assert listed.num_dropped == {REASONS["test"]: 0, "same bytes": 1, "outlier": 2, "conflict": 0}


@pytest.mark.parametrize("name", DROPS)
def test_reason_column_has_a_text_for_every_reason(name: str) -> None:
    column = reason_column(np.array([DROPS.index(name), -1], np.int8))
    assert column.to_pylist() == [REASONS[name], None]
