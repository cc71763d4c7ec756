"""Checkpoints by real gloo processes: class ranges of any size, any number of ranks, nothing half written."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayface.heads.class_centers import class_range
from rayface.models.row_shard import RowShard
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.progress import Progress
from tests.ranks import run_ranks

NUM_CLASSES = 10
FULL = torch.arange(NUM_CLASSES * 4.0).view(NUM_CLASSES, 4)


def save_and_load_all(rank: int, world_size: int, folder: str) -> None:
    run = Path(folder)
    if world_size > 1:
        store = f"file://{run}/store-{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    first, last = class_range(NUM_CLASSES, world_size, rank)
    shard = RowShard.of(FULL[first:last].clone(), first, NUM_CLASSES)
    state = {"head.centers": shard, "backbone.weight": torch.full((3,), 7.0)}
    group = dist.group.WORLD if world_size > 1 else None
    checkpoint.save(run, state, Progress(step=world_size), keep=5, group=group)
    for saved in checkpoint.all_in(run):
        rows, weight = torch.zeros(last - first, 4), torch.zeros(3)
        target = {"head.centers": RowShard.of(rows, first, NUM_CLASSES), "backbone.weight": weight}
        progress = checkpoint.load(saved, target)
        assert torch.equal(rows, FULL[first:last])
        assert weight.tolist() == [7.0] * 3
        assert saved == checkpoint.folder_of(run, progress.step)


def test_checkpoint_of_any_number_of_ranks_loads_on_any_other(tmp_path):
    for world_size in (3, 2):
        run_ranks(save_and_load_all, (world_size, str(tmp_path)), world_size)
    save_and_load_all(0, 1, str(tmp_path))
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000001", "step_00000002", "step_00000003"]


def test_checkpoints_beyond_keep_are_deleted_and_unfinished_ones_ignored(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, {"w": torch.ones(2)}, Progress(step=step), keep=2)
    (tmp_path / "checkpoints" / "step_00000020").mkdir()
    (tmp_path / "checkpoints" / ".step_00000025.tmp").mkdir()
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step_00000010", "step_00000015"]
    assert Progress.read(checkpoint.all_in(tmp_path)[-1]) == Progress(step=15)


def save_small(run: Path, step: int, *, keep: int = 2, **progress: object) -> None:
    checkpoint.save(run, {"w": torch.full((2,), float(step))}, Progress(step=step, **progress), keep=keep)


def names(run: Path) -> list[str]:
    return [p.name.removeprefix("step_000000") for p in checkpoint.all_in(run)]


def test_checkpoints_beyond_keep_are_deleted_but_for_the_best(tmp_path):
    for step, accuracy in ((10, 0.5), (20, 0.8), (30, 0.8), (40, None), (50, 0.7)):
        save_small(tmp_path, step, accuracy=accuracy)
    assert names(tmp_path) == ["20", "40", "50"]
    assert checkpoint.best_in(tmp_path) == checkpoint.folder_of(tmp_path, 20)
    save_small(tmp_path, 60, keep=1, accuracy=0.9)
    assert names(tmp_path) == ["60"]


def test_save_after_a_killed_run_removes_its_leftovers_and_is_valid(tmp_path):
    (tmp_path / "checkpoints" / ".step_00000025.tmp").mkdir(parents=True)
    save_small(tmp_path, 30)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.verify(folder) == []
    digests = json.loads((folder / "digests.json").read_text())["files"]
    assert {*digests, "digests.json"} == {p.name for p in folder.iterdir()}


def test_newest_valid_with_corrupt_checkpoints_sets_them_aside_for_the_one_before(tmp_path, caplog):
    for step in (10, 20, 30):
        save_small(tmp_path, step, keep=3)
    for step in (20, 30):
        data = checkpoint.folder_of(tmp_path, step) / "__0_0.distcp"
        data.write_bytes(data.read_bytes()[:-1] + b"x")
    chosen, faults = checkpoint.newest_valid(tmp_path)
    assert chosen == checkpoint.folder_of(tmp_path, 10)
    assert len(faults) == 2
    assert "step_00000030 is corrupt, step_00000010 is used instead" in caplog.text
    assert (tmp_path / "faults.log").read_text().count("sha256") == 2
    assert (tmp_path / "checkpoints" / "corrupt_step_00000030").is_dir()
    save_small(tmp_path, 15, keep=1)  # the one gone on from was kept until here
    assert names(tmp_path) == ["15"]


def test_newest_valid_without_a_valid_checkpoint_raises_one_line_and_changes_nothing(tmp_path):
    assert checkpoint.newest_valid(tmp_path) == (None, [])
    for step in (10, 20):
        save_small(tmp_path, step)
        (checkpoint.folder_of(tmp_path, step) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="none of its checkpoints is valid") as caught:
        checkpoint.newest_valid(tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["10", "20"]


def test_set_aside_keeps_the_files_of_a_step_and_later_ones_and_returns_those_before(tmp_path):
    for step in (10, 20, 30):
        save_small(tmp_path, step, keep=3)
    assert checkpoint.set_aside(tmp_path, 20) == [checkpoint.folder_of(tmp_path, 10)]
    assert names(tmp_path) == ["10"]
    assert all(
        (tmp_path / "checkpoints" / f"not_finite_step_000000{step}" / ".metadata").is_file() for step in (20, 30)
    )


def test_newest_described_reads_no_tensors_and_last_step_counts_corrupt_checkpoints(tmp_path):
    assert checkpoint.newest_described(tmp_path) is None
    assert checkpoint.last_step(tmp_path) == -1
    for step in (10, 20, 30):
        save_small(tmp_path, step, keep=3)
    data = checkpoint.folder_of(tmp_path, 20) / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    progress = checkpoint.folder_of(tmp_path, 30) / "progress.json"
    progress.write_bytes(progress.read_bytes()[:-1] + b" ")
    assert checkpoint.newest_described(tmp_path) == checkpoint.folder_of(tmp_path, 20)
    assert checkpoint.last_step(tmp_path) == 30


def test_best_checkpoint_is_none_whose_progress_cannot_be_read(tmp_path):
    for step, accuracy in ((10, 0.5), (20, 0.9)):
        save_small(tmp_path, step, accuracy=accuracy)
    assert checkpoint.best_in(tmp_path) == checkpoint.folder_of(tmp_path, 20)
    for content in ("{", "[]", "{}"):
        (checkpoint.folder_of(tmp_path, 20) / "progress.json").write_text(content)
        assert checkpoint.best_in(tmp_path) == checkpoint.folder_of(tmp_path, 10)


def test_empty_tensors_of_a_prefix_have_the_saved_shapes_and_types(tmp_path):
    state = {"rng.0.torch": torch.ones(5, dtype=torch.uint8), "rng.1.torch": torch.ones(3), "w": torch.ones(2)}
    folder = checkpoint.save(tmp_path, state, Progress(step=1), keep=1)
    found = checkpoint.empty_like_saved(folder, "rng.0.")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        "rng.0.torch": ((5,), torch.uint8)
    }
