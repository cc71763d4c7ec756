"""Mirrored states without Ray: stores in another process, ranks in a gloo group."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rayface.heads.class_centers import class_range
from rayface.models.row_shard import RowShard
from rayface.training.checkpointing.mirror import Mirror
from rayface.training.checkpointing.mirror_store import MirrorStore, Part, Store
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.row_copy import RowCopy
from rayface.training.distributed import World
from tests.ranks import run_ranks

NUM_CLASSES = 7
FULL = torch.arange(2.0 * NUM_CLASSES).reshape(NUM_CLASSES, 2)


class StoresByNode:
    """Stores that were made before, seen from a node."""

    def __init__(self, node: str, stores: dict[str, Store]) -> None:
        self.node, self._stores = node, stores

    def of(self, node: str) -> Store:
        return self._stores[node]

    def every(self) -> list[Store]:
        return list(self._stores.values())


class StoreManager(BaseManager):
    """Another process that holds stores."""


StoreManager.register("store", MirrorStore, exposed=["begin", "write", "commit", "read", "delivered", "discard_before"])


@pytest.fixture
def manager():
    with StoreManager() as manager:
        yield manager


def alone(stores: StoresByNode, told: list[str] | None = None, every: int = 1) -> Mirror:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    return Mirror(world, stores, every, on_failure=(told if told is not None else []).append)


def loaded(mirror: Mirror, least_step: float = 0) -> tuple[int, list[float]] | None:
    state = mirror.newest(least_step)
    if state is None:
        return None
    weight = torch.zeros(3)
    return state.load({"w": weight}).step, weight.tolist()


def save(mirror: Mirror, step: int) -> None:
    mirror.save({"w": torch.full((3,), float(step))}, Progress(step=step))
    mirror.wait()


def test_newest_state_is_the_last_one_and_survives_a_copy_that_is_cut_off(manager):
    stores = StoresByNode("a", {"a": manager.store("a")})
    mirror = alone(stores)
    for step in (1, 2, 3):
        save(mirror, step)
    assert loaded(alone(stores)) == (3, [3, 3, 3])
    mirror._reserve(64)  # a copy begins, and its rank is killed
    assert loaded(alone(stores)) == (3, [3, 3, 3])


def test_first_state_after_a_restart_does_not_overwrite_the_one_that_was_loaded(manager):
    stores = StoresByNode("a", {"a": manager.store("a")})
    for steps in ((1, 2), (3,), (4, 5, 6)):
        restarted = alone(stores)
        restarted.newest(0)
        for step in steps:
            restarted._reserve(64)
            assert loaded(alone(stores)) == (None if step == 1 else (step - 1, [step - 1.0] * 3))
            save(restarted, step)


def test_state_older_than_the_last_checkpoint_is_not_taken(manager):
    stores = StoresByNode("a", {"a": manager.store("a")})
    save(alone(stores), 4)
    assert loaded(alone(stores), 5) is None
    assert loaded(alone(stores), math.inf) is None
    assert loaded(alone(stores), 4) == (4, [4, 4, 4])


def test_cleared_mirror_has_no_state_and_takes_the_next(manager):
    stores = StoresByNode("a", {"a": manager.store("a")})
    mirror = alone(stores)
    save(mirror, 4)
    save(mirror, 5)
    mirror.clear()
    assert loaded(alone(stores)) is None
    save(mirror, 3)
    assert loaded(alone(stores)) == (3, [3, 3, 3])


@pytest.mark.parametrize("is_locked", [True, False])
def test_memory_of_a_slot_is_page_locked_once_for_a_gpu_or_a_failure_logged_once(
    manager, monkeypatch, caplog, is_locked
):
    locked = []

    def lock(memory, device):
        locked.append(memory)
        return is_locked

    monkeypatch.setattr("rayface.training.checkpointing.mirror.page_lock", lock)
    stores = StoresByNode("a", {"a": manager.store("a")})
    world = World(rank=0, size=1, local_size=1, device=torch.device("cuda"))
    mirror = Mirror(world, stores, 1, on_failure=lambda _: None)
    memory = [mirror._reserve(size) for size in (64, 64, 32)]
    assert [len(each) for each in locked] == [64, 32]
    assert [memory[0].data_ptr(), memory[2].data_ptr()] == [each.data_ptr() for each in locked]
    line = "mirror: 64 bytes cannot be page-locked, so training waits for the copy of every mirrored state: "
    remedy = "raise the node's limit of locked memory (ulimit -l), or train.mirror_every"
    assert caplog.messages == ([] if is_locked else [line + remedy])


def test_part_sent_to_the_next_node_is_not_copied_by_the_sender(monkeypatch):
    """Ray copies an array's memory by itself; bytes would be made and pickled under the interpreter's lock."""
    monkeypatch.setattr("rayface.training.checkpointing.mirror.SENT_BYTES", 5)
    memory, sent = torch.arange(12, dtype=torch.uint8), []
    store = SimpleNamespace(commit=lambda *_: None, write=lambda rank, slot, offset, data: sent.append((offset, data)))
    mirror = alone(StoresByNode("a", {}))
    mirror._targets = [store, store]
    mirror._send(Part(step=1, workers=1, progress="{}", places={}), memory)
    assert [offset for offset, _ in sent] == [0, 5, 10]
    assert np.concatenate([data for _, data in sent]).tolist() == list(range(12))
    assert all(np.shares_memory(data, memory.numpy()) for _, data in sent)


def test_copy_of_the_next_node_is_taken_where_the_own_node_is_lost(manager, monkeypatch):
    a, b = manager.store("a"), manager.store("b")
    mirror = alone(StoresByNode("a", {"a": a, "b": b}))
    mirror._nodes = ["a", "b"]
    monkeypatch.setattr("rayface.training.checkpointing.mirror.SENT_BYTES", 5)
    monkeypatch.setattr("rayface.training.checkpointing.mirrored_state.SENT_BYTES", 7)
    save(mirror, 4)
    assert loaded(alone(StoresByNode("c", {"b": b}))) == (4, [4, 4, 4])


def test_lost_store_turns_the_mirror_off_and_says_so_once():
    with StoreManager() as manager:
        told: list[str] = []
        mirror = alone(StoresByNode("a", {"a": manager.store("a")}), told)
        save(mirror, 1)
    save(mirror, 2)
    assert told == []
    save(mirror, 3)
    assert not mirror.due(4)
    (line,) = told
    assert line.startswith("the mirror is off, restarts begin at checkpoints: rank 0: ")
    assert loaded(mirror) is None


def test_mirror_is_due_at_multiples_and_never_without_stores(manager):
    stores = StoresByNode("a", {"a": manager.store("a")})
    assert [step for step in range(1, 8) if alone(stores, every=3).due(step)] == [3, 6]
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    assert not any(Mirror(world, None, 3, on_failure=print).due(step) for step in range(1, 8))
    assert not any(alone(stores, every=0).due(step) for step in range(1, 8))


def test_rows_that_change_while_they_are_copied_are_mirrored_as_they_were(manager, monkeypatch):
    stores, run = StoresByNode("a", {"a": manager.store("a")}), RowCopy.run
    may_copy = threading.Event()
    monkeypatch.setattr(RowCopy, "run", lambda self: may_copy.wait(30) and run(self))
    mirror, rows = alone(stores), FULL.clone()
    mirror.save({"head.centers": RowShard.of(rows, 0, NUM_CLASSES)}, Progress(step=1))
    mirror.wait_until_copied(torch.tensor([0, 3]))
    rows[[0, 3]] += 1
    may_copy.set()
    mirror.wait_until_copied()
    rows += 1
    mirror.wait()
    assert torch.equal(rows_of(alone(stores), 0, NUM_CLASSES), FULL)


def rows_of(mirror: Mirror, start: int, stop: int) -> torch.Tensor:
    state = mirror.newest(0)
    assert state is not None
    local = torch.zeros(stop - start, 2)
    state.load({"head.centers": RowShard.of(local, start, NUM_CLASSES)})
    return local


def state_of(rank: int, world_size: int, step: int) -> dict[str, torch.Tensor]:
    start, stop = class_range(NUM_CLASSES, world_size, rank)
    return {
        "backbone.mean": torch.full((2,), 10.0 * rank + step),  # of each rank, as batch-norm statistics
        "head.centers": RowShard.of(FULL[start:stop] + step, start, NUM_CLASSES),
        "optimizer.state.w.momentum": torch.tensor(float(step), dtype=torch.float64),
        f"rng.{rank}.torch": torch.tensor([rank], dtype=torch.uint8),
    }


@contextmanager
def group(rank: int, world_size: int, store: Path) -> Iterator[World]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    yield World(rank=rank, size=world_size, local_size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


def mirrored(world: World, stores: dict[str, Store], on_failure: Callable[[str], None] = print) -> Mirror:
    return Mirror(world, StoresByNode("ab"[world.rank % 2], stores), 1, on_failure=on_failure)


def mirror_twice(world: World, stores: dict[str, Store], first: int) -> None:
    mirror = mirrored(world, stores)
    for step in (first, first + 1):
        mirror.save(state_of(world.rank, world.size, step), Progress(step=step))
    mirror.wait()


def load_and_compare(world: World, stores: dict[str, Store], saved_by: int, step: int) -> None:
    found = mirrored(world, stores).newest(0)
    assert found is not None
    start, stop = class_range(NUM_CLASSES, world.size, world.rank)
    rows, mean = torch.zeros(stop - start, 2), torch.zeros(2)
    moments, rng = found.empty_like("optimizer."), found.empty_like(f"rng.{world.rank}.")
    state = {"backbone.mean": mean, "head.centers": RowShard.of(rows, start, NUM_CLASSES), **moments, **rng}
    assert found.load(state).step == step
    assert torch.equal(rows, FULL[start:stop] + step)
    assert mean.tolist() == [10.0 * (world.rank % saved_by) + step] * 2
    assert moments["optimizer.state.w.momentum"].item() == step
    assert [value.tolist() for value in rng.values()] == ([[world.rank]] if world.rank < saved_by else [])


def resize(rank: int, folder: Path, stores: dict[str, Store]) -> None:
    """Three ranks, then two of them, then all three again."""
    with group(rank, 3, folder / "three") as world:
        mirror_twice(world, stores, 1)
        load_and_compare(world, stores, saved_by=3, step=2)
    if rank < 2:
        with group(rank, 2, folder / "two") as world:
            load_and_compare(world, stores, saved_by=3, step=2)
            mirror_twice(world, stores, 3)
    with group(rank, 3, folder / "again") as world:
        load_and_compare(world, stores, saved_by=2, step=4)


def test_state_of_any_number_of_ranks_is_loaded_by_any_number(tmp_path: Path, manager):
    stores = {"a": manager.store("a"), "b": manager.store("b")}
    run_ranks(resize, (tmp_path, stores), 3)
    # Each node has the part of the other one's rank too, and nothing of the third rank, which has left.
    kept = [sorted((copy.rank, copy.part.step) for copy in store.delivered()) for store in stores.values()]
    assert kept == [[(0, 3), (0, 4), (1, 3), (1, 4)]] * 2


def fail_on_one_rank(rank: int, folder: Path, stores: dict[str, Store]) -> None:
    told: list[str] = []
    with group(rank, 2, folder / "store") as world:
        mirror = mirrored(world, stores, told.append)
        mirror.save(state_of(rank, 2, 1), Progress(step=1))
        mirror.wait()
        if rank == 1:
            mirror._reserve = lambda size: 1 / 0
        for step in (2, 3):
            mirror.save(state_of(rank, 2, step), Progress(step=step))
            mirror.wait()
        assert told == ["the mirror is off, restarts begin at checkpoints: rank 1: ZeroDivisionError: division by zero"]
        load_and_compare(world, stores, saved_by=2, step=1)


def test_failure_of_one_rank_turns_the_mirror_of_all_off_and_keeps_the_last_whole_state(tmp_path, manager):
    stores = {"a": manager.store("a"), "b": manager.store("b")}
    run_ranks(fail_on_one_rank, (tmp_path, stores), 2)
    assert {copy.part.step for store in stores.values() for copy in store.delivered() if copy.rank == 1} == {1}
