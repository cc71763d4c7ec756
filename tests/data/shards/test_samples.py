"""Positions of the samples of every shard, computed in one pass."""

from typing import Any

import numpy as np
import pytest

from rayface.data.shards.samples import Fault, ShardRows


@pytest.mark.parametrize("shuffled", [False, True])
def test_shard_rows_equal_those_of_a_scan(shuffled: bool) -> None:
    """Shards without a sample among them; in the order of the index; slices where it is in shard order."""
    random = np.random.default_rng(0)
    shard = np.sort(random.choice([0, 1, 2, 4, 7, 8], 500)).astype(np.int32)
    if shuffled:
        shard = random.permutation(shard)
    rows, places = ShardRows(shard, 10), np.arange(500)
    for number in range(10):
        expected = np.flatnonzero(shard == number).tolist()
        assert places[rows[number]].tolist() == rows.positions(number).tolist() == expected
        assert isinstance(rows[number], slice) != shuffled


class Counted(np.ndarray):
    """Counts the elements that operations look at."""

    seen = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        Counted.seen += sum(np.size(value) for value in inputs)
        plain = [np.asarray(value) if isinstance(value, Counted) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_shard_rows_of_a_thousand_shards_take_one_pass() -> None:
    """One pass for each shard took 20 minutes for 42 million images."""
    shard = np.repeat(np.arange(1000, dtype=np.int32), 20).view(Counted)
    Counted.seen = 0
    rows = ShardRows(shard, 1000)
    assert [rows[number].stop for number in range(1000)] == list(range(20, 20_001, 20))  # type: ignore[union-attr]
    assert Counted.seen <= 4 * len(shard)


def test_fault_of_a_name_with_control_characters_is_one_visible_line() -> None:
    fault = Fault(shard="a.tar", member="x\nnode lost\x1b]0;title\x07", offset=0, reason="label\r\u202e")
    assert str(fault) == r"a.tar: x\nnode lost\x1b]0;title\x07 at byte 0: label\r\u202e"


def test_fault_without_a_place_in_the_file_names_none() -> None:
    assert str(Fault(shard="in", member="ann/x.jpg", reason="no bytes")) == "in: ann/x.jpg: no bytes"
    assert str(Fault(shard="in", member=None, reason="2 more")) == "in: 2 more"
