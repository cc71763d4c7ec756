"""A copy that is taken while rows change holds all rows as they were at its start; on a GPU, streams wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from rayface.training.checkpointing import row_copy
from rayface.training.checkpointing.row_copy import DeviceCopy, RowCopy


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


class Streams:
    """Stand-ins for CUDA's streams and events that record what waits for what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        training = SimpleNamespace(wait_event=lambda event: self.order.append(f"training waits for {event.name}"))
        event = SimpleNamespace(name="copy", synchronize=lambda: self.order.append("thread waits for copy"))
        side = SimpleNamespace(
            wait_stream=lambda other: self.order.append("side waits for training" * (other is training)),
            record_event=lambda given: (self.order.append("recorded"), given)[1],
        )
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
        monkeypatch.setattr(torch.cuda, "Event", lambda blocking: event)
        monkeypatch.setattr(torch.cuda, "stream", self._on)

    @contextmanager
    def _on(self, stream: object) -> Iterator[None]:
        self.order.append("copy")
        yield


def test_device_copy_has_training_wait_on_the_device_for_the_copy_and_not_the_host(monkeypatch):
    streams, live = Streams(monkeypatch), torch.arange(6.0).view(3, 2)
    copy = torch.zeros(3, 2)
    copying = DeviceCopy(live, copy)
    assert streams.order == ["side waits for training", "copy", "recorded"]
    assert torch.equal(copy, live)
    copying.before_change()
    assert streams.order[3:] == ["training waits for copy"]
    copying.run()
    assert streams.order[4:] == ["thread waits for copy"]
