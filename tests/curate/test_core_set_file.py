"""Rows of core_set.parquet: images that were selected among, and images that cleaning dropped."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.curate.core_set_file import SCHEMA, dropped_rows, selected_rows, write_rows
from rayface.curate.identities import Selection

KEYS = pa.array(["a", "b", "c"])


def selected() -> pa.Table:
    selection = Selection(
        np.array([True, False, True]), np.array([0.5, 0.25, 0.125], np.float32), np.array([-1, 2, -1])
    )
    return selected_rows(KEYS, np.array([4, 4, 4]), selection, "too alike")


def test_selected_rows_name_the_image_that_each_was_dropped_for() -> None:
    assert selected().to_pydict() == {
        "key": ["a", "b", "c"],
        "label": [4, 4, 4],
        "kept": [True, False, True],
        "score": [0.5, 0.25, 0.125],
        "suppressed_by": [None, "c", None],
        "reason": ["kept", "too alike", "kept"],
    }


def test_dropped_rows_are_not_kept_and_say_why() -> None:
    found = dropped_rows(KEYS, pa.array([1, 1, 2]), pa.array(["outlier", "conflict", "outlier"]))
    assert found.schema == SCHEMA
    assert found["kept"].to_pylist() == [False] * 3
    assert found["reason"].to_pylist() == ["outlier", "conflict", "outlier"]
    assert found["suppressed_by"].null_count == 3


def test_write_rows_of_tables_is_a_row_group_each_in_order(tmp_path: Path) -> None:
    dropped = dropped_rows(pa.array(["d"]), pa.array([5]), pa.array(["outlier"]))
    write_rows(tmp_path / "core_set.parquet", iter([selected(), dropped]))
    assert pq.read_metadata(tmp_path / "core_set.parquet").num_row_groups == 2
    assert pq.read_table(tmp_path / "core_set.parquet")["key"].to_pylist() == ["a", "b", "c", "d"]


def test_write_rows_with_an_error_half_way_leaves_no_file(tmp_path: Path) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield selected()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_rows(tmp_path / "core_set.parquet", broken())
    assert list(tmp_path.iterdir()) == []
