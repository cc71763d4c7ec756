"""Checkpoints written beside the training: what they hold, who waits for whom, and what an error does."""

import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from rayface.heads.class_centers import class_range
from rayface.models.row_shard import RowShard
from rayface.training.checkpointing import checkpoint, folders
from rayface.training.checkpointing import writer as writer_module
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.progress import PROGRESS, Progress
from rayface.training.checkpointing.row_copy import RowCopy
from rayface.training.checkpointing.writer import CheckpointWriter, WriteTiming
from tests.ranks import run_ranks

SAVE = checkpoint.save


@pytest.fixture
def held(monkeypatch):
    """Holds every write back until it is set; `started` tells that one has begun."""
    held, started = threading.Event(), threading.Event()

    def save(*args, **options):
        started.set()
        assert held.wait(30)
        return SAVE(*args, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    held.started = started
    yield held
    held.set()


def loaded(run: Path, step: int, size: int) -> torch.Tensor:
    tensor = torch.zeros(size)
    checkpoint.load(checkpoint.folder_of(run, step), {"w": tensor})
    return tensor


def test_save_returns_before_the_write_and_later_changes_are_not_in_it(tmp_path, held):
    writer = CheckpointWriter(tmp_path, keep=2)
    weight, progress = torch.ones(3), Progress(step=1, schedule={"seen": [1]})
    writer.save({"w": weight}, progress)
    assert held.started.wait(30)
    weight.fill_(2)
    progress.schedule["seen"].append(2)
    assert checkpoint.all_in(tmp_path) == []
    held.set()
    writer.wait()
    assert loaded(tmp_path, 1, 3).tolist() == [1, 1, 1]
    saved = json.loads((checkpoint.folder_of(tmp_path, 1) / PROGRESS).read_text())
    assert saved["schedule"] == {"seen": [1]}


def test_rows_changed_while_others_are_copied_are_saved_as_they_were(tmp_path, monkeypatch):
    """The thread may not copy before training has gone on."""
    may_copy = threading.Event()
    run = RowCopy.run
    monkeypatch.setattr(RowCopy, "run", lambda self: may_copy.wait(30) and run(self))
    writer = CheckpointWriter(tmp_path, keep=2)
    rows = FULL.clone()
    writer.save({"head.centers": RowShard.of(rows, 0, NUM_CLASSES)}, Progress(step=1))
    for few in ([0, 3], [3, 6]):
        writer.wait_until_copied(torch.tensor(few))
        rows[few] += 1
    may_copy.set()
    writer.wait_until_copied()
    rows += 1
    writer.wait()
    got = torch.zeros(NUM_CLASSES, 2)
    checkpoint.load(checkpoint.folder_of(tmp_path, 1), {"head.centers": RowShard.of(got, 0, NUM_CLASSES)})
    assert torch.equal(got, FULL)


def test_timing_tells_the_wait_of_training_and_the_work_of_the_thread(tmp_path, held, monkeypatch):
    ticks = {True: itertools.count(0, 10), False: itertools.count()}  # of the main thread, and of the other

    def perf_counter() -> int:
        return next(ticks[threading.current_thread() is threading.main_thread()])

    monkeypatch.setattr(writer_module, "time", SimpleNamespace(perf_counter=perf_counter))
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save({"w": torch.ones(3)}, Progress(step=4))
    writer._snapshot.waited = 5  # for rows of class centers
    held.set()
    writer.wait()
    assert writer.timing == WriteTiming(step=4, wait_seconds=15, copy_seconds=1, write_seconds=2)


def test_save_during_a_write_waits_and_reuses_its_memory(tmp_path, held):
    writer, order = CheckpointWriter(tmp_path, keep=5), []
    weight = torch.ones(3)
    writer.reserve({"w": weight})
    buffer = writer._buffers["w"].data_ptr()
    writer.save({"w": weight}, Progress(step=1))

    def save_next() -> None:
        writer.save({"w": torch.full((3,), 2.0)}, Progress(step=2))
        order.append("second begun")

    second = threading.Thread(target=save_next)
    second.start()
    second.join(0.2)
    assert second.is_alive()  # it may not touch the buffers of the first
    order.append("first written")
    held.set()
    second.join()
    writer.wait()
    assert order == ["first written", "second begun"]
    assert loaded(tmp_path, 1, 3).tolist() == [1, 1, 1]
    assert loaded(tmp_path, 2, 3).tolist() == [2, 2, 2]
    assert writer._buffers["w"].data_ptr() == buffer
    writer.save({"w": torch.ones(5)}, Progress(step=3))
    writer.wait()
    assert loaded(tmp_path, 3, 5).tolist() == [1] * 5
    writer.reserve({"w": torch.ones(5, dtype=torch.float64)})
    assert writer._buffers["w"].dtype == torch.float64


def test_write_that_fails_raises_once_in_one_line_and_the_next_works(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save({"w": torch.ones(3)}, Progress(step=1))
    writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_digests", full_disk)
        writer.save({"w": torch.ones(3)}, Progress(step=2))
        with pytest.raises(CheckpointError, match=r"step_00000002 could not be written: .*No space left") as caught:
            writer.wait()
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]  # its part is given back
    writer.wait()
    writer.save({"w": torch.ones(3)}, Progress(step=3))
    writer.wait()
    assert loaded(tmp_path, 3, 3).tolist() == [1] * 3


@pytest.mark.parametrize(("kind", "raised"), [(RuntimeError, RuntimeError), (KeyError, CheckpointError)])
def test_write_with_an_unforeseen_error_raises_one_line(tmp_path, monkeypatch, kind, raised):
    def fail(*args, **options):
        raise kind("Connection closed by\npeer")

    monkeypatch.setattr(checkpoint, "save", fail)
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save({"w": torch.ones(3)}, Progress(step=1))
    with pytest.raises(raised, match=rf"could not be written: {kind.__name__}: '?Connection closed by") as caught:
        writer.save({"w": torch.ones(3)}, Progress(step=2))
    assert type(caught.value) is raised
    assert "\n" not in str(caught.value)


def full_disk(*args: object) -> None:
    raise OSError(28, "No space left on device")


NUM_CLASSES = 7
FULL = torch.arange(NUM_CLASSES * 2.0).view(NUM_CLASSES, 2)


def train_and_save(rank: int, world_size: int, folder: str) -> None:
    """Collectives on the default group all the while that checkpoints are written."""
    torch.set_num_threads(1)
    run = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{run}/store", rank=rank, world_size=world_size)
    writer = CheckpointWriter(run, keep=2)
    assert writer.newest_valid() == (None, [])
    first, last = class_range(NUM_CLASSES, world_size, rank)
    rows, weight = FULL[first:last].clone(), torch.zeros(4)
    for step in range(1, 41):
        weight += 1
        writer.wait_until_copied()
        rows += 1
        total = torch.tensor([float(step + rank)])
        dist.all_reduce(total)
        assert total.item() == world_size * step + sum(range(world_size))
        if step % 10 == 0:
            state = {"head.centers": RowShard.of(rows, first, NUM_CLASSES), "backbone.w": weight}
            writer.save(state, Progress(step=step))
    writer.wait()
    fail_on_the_last_rank(rank, world_size, writer)
    if rank == 0:
        (checkpoint.folder_of(run, 40) / "__1_0.distcp").write_bytes(b"damaged")
    dist.barrier()
    chosen, faults = writer.newest_valid()
    assert chosen == checkpoint.folder_of(run, 30)
    assert ["__1_0.distcp: has 7 bytes" in fault for fault in faults] == [True]
    got, weight = torch.zeros(NUM_CLASSES, 2), torch.zeros(4)
    checkpoint.load(chosen, {"head.centers": RowShard.of(got, 0, NUM_CLASSES), "backbone.w": weight})
    assert torch.equal(got, FULL + 30)
    assert weight.tolist() == [30] * 4
    dist.barrier()


def fail_on_the_last_rank(rank: int, world_size: int, writer: CheckpointWriter) -> None:
    """Both where DCP writes and where we do, one rank's trouble is everybody's, in the same words."""
    for target, name in ((folders, "digests_of"), (torch.distributed.checkpoint.FileSystemWriter, "write_data")):
        kept = getattr(target, name)
        if rank == world_size - 1:
            setattr(target, name, full_disk)
        writer.save({"w": torch.ones(3)}, Progress(step=50))
        with pytest.raises(CheckpointError, match=rf"rank {world_size - 1}: OSError: .*No space left on device"):
            writer.wait()
        setattr(target, name, kept)


@pytest.mark.parametrize("world_size", [2, 3])
def test_writes_beside_the_collectives_of_training_are_valid(tmp_path, world_size):
    run_ranks(train_and_save, (world_size, str(tmp_path)), world_size)
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step_00000030", "corrupt_step_00000040"}
    assert "step_00000040 is corrupt, step_00000030 is used instead" in (tmp_path / "faults.log").read_text()


def leave_while_a_checkpoint_is_written(rank: int, world_size: int, folder: str) -> None:
    run, left = Path(folder), threading.Event()
    dist.init_process_group("gloo", init_method=f"file://{run}/store", rank=rank, world_size=world_size)
    writer, own_digests = CheckpointWriter(run, keep=2), folders.DiskFolder.own_digests
    state = {"head.centers": RowShard.of(torch.ones(2, 3), 2 * rank, 2 * world_size)}
    writer.save(state, Progress(step=1))
    writer.wait()

    def held(self, rank, progress):
        assert left.wait(30)
        return own_digests(self, rank, progress)

    folders.DiskFolder.own_digests = held
    writer.save(state, Progress(step=2))
    dist.barrier()
    # The other rank may be sooner, and its failure may end the write here before the file is seen.
    while writer.writing and not list((run / "checkpoints").glob(f".step_*/__{rank}_0.distcp")):
        time.sleep(0.01)
    dist.destroy_process_group()
    left.set()
    with pytest.raises((RuntimeError, CheckpointError), match=r"could not be written"):
        writer.wait()


def test_ranks_that_leave_the_process_group_during_a_write_publish_nothing(tmp_path):
    """One that took itself for rank 0 then would write, and publish, a checkpoint of its own rows alone."""
    run_ranks(leave_while_a_checkpoint_is_written, (2, str(tmp_path)), 2)
    chosen, faults = checkpoint.newest_valid(tmp_path)
    assert (chosen, faults) == (checkpoint.folder_of(tmp_path, 1), [])
    files = json.loads((chosen / "digests.json").read_text())["files"]
    assert files.keys() == {".metadata", "__0_0.distcp", "__1_0.distcp", PROGRESS}
