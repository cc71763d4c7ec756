"""A copy that is taken while rows change holds all rows as they were at its start."""

import threading

import pytest
import torch

from rayface.training.checkpointing import row_copy
from rayface.training.checkpointing.row_copy import RowCopy


@pytest.fixture
def matrix(monkeypatch):
    """90 rows in blocks of 7."""
    live = torch.arange(90.0 * 3).view(90, 3)
    monkeypatch.setattr(row_copy, "_BLOCK_BYTES", 7 * 12)
    return live


@pytest.mark.parametrize("seed", range(5))
def test_row_copy_of_rows_that_change_between_blocks_holds_the_old_ones(matrix, monkeypatch, seed):
    draw = torch.Generator().manual_seed(seed)
    before, copy = matrix.clone(), torch.full_like(matrix, torch.nan)
    copying = RowCopy(matrix, copy)

    def change(seconds: float = 0) -> None:
        rows = torch.randperm(90, generator=draw)[: int(torch.randint(0, 30, (), generator=draw))]
        copying.before_change(rows)
        matrix[rows] += 1000

    monkeypatch.setattr(row_copy.time, "sleep", change)
    change()
    copying.run()
    assert torch.equal(copy, before)
    assert not torch.equal(matrix, before)


def test_row_copy_of_rows_that_change_in_another_thread_holds_the_old_ones(matrix):
    before, copy, copying = matrix.clone(), torch.full_like(matrix, torch.nan), None
    for seed in range(20):
        matrix.copy_(before)
        copying = RowCopy(matrix, copy.fill_(torch.nan))
        thread = threading.Thread(target=copying.run)
        thread.start()
        draw = torch.Generator().manual_seed(seed)
        while thread.is_alive():
            rows = torch.randperm(90, generator=draw)[:10]
            copying.before_change(rows)
            matrix[rows] += 1000
        thread.join()
        assert torch.equal(copy, before)


def test_row_copy_without_rows_is_empty():
    copy = torch.zeros(0, 3)
    copying = RowCopy(torch.zeros(0, 3), copy)
    copying.before_change(torch.zeros(0, dtype=torch.int64))
    copying.run()
    assert copy.shape == (0, 3)
