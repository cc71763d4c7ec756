"""Snapshots: what is copied at once, and rows that training changes while a thread copies them."""

import threading
from types import SimpleNamespace

import pytest
import torch

from rayface.models.row_shard import RowShard
from rayface.training.checkpointing import snapshot as snapshot_module
from rayface.training.checkpointing.row_copy import RowCopy
from rayface.training.checkpointing.snapshot import Snapshot, copied, plain


class Memory:
    """Host memory by name; keeps what was asked for."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return self.tensors.setdefault(name, torch.empty(tensor.shape, dtype=tensor.dtype))


def rows() -> torch.Tensor:
    return torch.arange(12.0).view(6, 2)


def test_snapshot_started_holds_all_but_the_row_shards_at_once():
    weight, centers, memory = torch.ones(3, requires_grad=True), rows(), Memory()
    snapshot = Snapshot()
    copies = snapshot.start({"w": weight, "c": RowShard.of(centers, 2, 20)}, memory)
    with torch.no_grad():
        weight.fill_(9)
    assert copies["w"].tolist() == [1, 1, 1]
    assert not copies["w"].requires_grad
    assert (copies["c"].first_row, copies["c"].size(0)) == (2, 20)
    snapshot.run()
    assert torch.equal(plain(copies["c"]), rows())
    assert torch.equal(memory.tensors["c"], rows())


def test_rows_about_to_change_are_copied_as_they_were():
    """Nothing has copied them yet: the thread comes later."""
    centers, snapshot = rows(), Snapshot()
    copies = snapshot.start({"c": RowShard.of(centers, 0, 6)}, Memory())
    few = torch.tensor([1, 4])
    snapshot.wait_until_copied(few)
    centers[few] = -1
    snapshot.run()
    assert torch.equal(plain(copies["c"]), rows())
    assert snapshot.waited > 0
    snapshot.start({"c": RowShard.of(centers, 0, 6)}, Memory())
    assert snapshot.waited == 0


def test_wait_until_copied_for_all_rows_blocks_until_the_thread_is_done():
    snapshot, order = Snapshot(), []
    snapshot.start({"c": RowShard.of(rows(), 0, 6)}, Memory())

    def wait() -> None:
        snapshot.wait_until_copied()
        order.append("may change")

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    order.append("copied")
    snapshot.run()
    waiting.join()
    assert order == ["copied", "may change"]


def test_wait_until_copied_of_rows_on_a_gpu_does_not_block_the_host(monkeypatch):
    """Not for all rows either, before the thread has run."""
    waits = []
    monkeypatch.setattr(
        snapshot_module, "DeviceCopy", lambda *_: SimpleNamespace(before_change=lambda: waits.append("gpu"))
    )
    monkeypatch.setattr(RowShard, "is_cuda", True)
    snapshot = Snapshot()
    snapshot.start({"c": RowShard.of(rows(), 0, 6)}, Memory())
    snapshot.wait_until_copied()
    snapshot.wait_until_copied(object())  # rows that the host must not read
    assert waits == ["gpu", "gpu"]


def test_wait_until_copied_without_a_snapshot_does_not_block():
    snapshot = Snapshot()
    snapshot.wait_until_copied()
    snapshot.wait_until_copied(torch.tensor([0]))
    assert snapshot.waited == 0


def test_copy_of_rows_that_fails_lets_training_continue(monkeypatch):
    """The error is the thread's; nobody may wait for ever."""
    snapshot = Snapshot()
    snapshot.start({"c": RowShard.of(rows(), 0, 6)}, Memory())
    monkeypatch.setattr(RowCopy, "run", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        snapshot.run()
    snapshot.wait_until_copied()
    assert snapshot._rows_copied.is_set()


def test_copied_state_shares_no_memory_and_keeps_shape_and_type():
    state = {"a": torch.arange(4, dtype=torch.int32).view(2, 2), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    copies = copied(state, Memory())
    assert all(torch.equal(copies[name], tensor) for name, tensor in state.items())
    assert [copies[name].dtype for name in state] == [torch.int32, torch.bfloat16]
    assert copies["a"].data_ptr() != state["a"].data_ptr()


def test_plain_of_a_row_shard_is_its_memory_without_subclass_and_gradient():
    local = torch.ones(2, 2, requires_grad=True)
    found = plain(RowShard.of(local, 0, 4))
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    assert found.data_ptr() == local.data_ptr()
