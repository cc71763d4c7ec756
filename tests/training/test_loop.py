"""The training loop and its checkpoints, in one process without Ray: a damaged one, the best one, the end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rayface import config as configs
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.models.run_files import PROGRESS
from rayface.precision import full_float32
from rayface.tracking import read_metrics
from rayface.tracking.journal import CHECKPOINT_FAULTS, read_records
from rayface.training import loop
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.mirror_store import MirrorStore, Store, Stores
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory
from rayface.training.train_step import TrainStep
from tests.ranks import run_ranks
from tests.training.checkpointing.test_mirror import StoreManager, StoresByNode

SAMPLE_ORDER = SampleOrder(num_samples=24, batch_size=4)
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def training(run: Path, *overrides: str, rank: int = 0, size: int = 1, stores: Stores | None = None) -> Training:
    base = ["train.epochs=2", "train.checkpoint_every=3", "train.precision=fp32", "train.log_every=1"]
    config = configs.load("debug", None, ["data.image_size=32", "data.train=unused", *base, *overrides])
    world = World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, SAMPLE_ORDER, num_classes=6, dataset=FACTS, stores=stores)


def batches(start: int, stop: int, rows: slice = slice(0, 4)):
    for step in range(start, stop):
        random = np.random.default_rng(step)
        images = torch.from_numpy(random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
        labels = torch.from_numpy(random.integers(0, 6, 4))
        yield Batch(step=step, rows=rows, images=images[rows], labels=labels[rows], faults=())


def batches_to(stop: int, rows: slice = slice(0, 4)):
    return lambda start: batches(start, stop, rows)


def damage(folder: Path) -> None:
    data = folder / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_in_fp32_forbids_tf32_in_its_steps(tmp_path, monkeypatch, precision):
    run, precisions = TrainStep.run, []

    def noted(self: TrainStep, *args, **options) -> float:
        precisions.append(torch.backends.cudnn.conv.fp32_precision)
        return run(self, *args, **options)

    monkeypatch.setattr(TrainStep, "run", noted)
    monkeypatch.setattr(loop, "full_float32", lambda device: full_float32(torch.device("cuda")))
    training(tmp_path, f"train.precision={precision}", "train.epochs=0.2").fit(batches_to(1))
    assert precisions == ["tf32" if precision == "bf16" else "ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_resume_with_a_corrupt_newest_checkpoint_costs_its_steps_and_nothing_else(tmp_path):
    whole, parts = training(tmp_path / "whole"), training(tmp_path / "parts")
    whole.fit(batches_to(12))
    with pytest.raises(RuntimeError, match="the data stream ended at step 8"):
        parts.fit(batches_to(8))
    parts.checkpoints.wait()
    damage(checkpoint.folder_of(tmp_path / "parts", 6))
    resumed = training(tmp_path / "parts")
    assert resumed.step == 3
    resumed.fit(batches_to(12))
    for name, tensor in whole.backbone.state_dict().items():
        assert torch.equal(tensor, resumed.backbone.state_dict()[name]), name
    assert torch.equal(whole.head.centers, resumed.head.centers)
    assert "step_00000006 is corrupt, step_00000003 is used instead" in (tmp_path / "parts/faults.log").read_text()
    records = [record for record, _ in read_records(tmp_path / "parts" / "journal" / "rank0.jsonl", 0)]
    (told,) = [r["values"][CHECKPOINT_FAULTS] for r in records if r["kind"] == "tags"]
    assert "step_00000006 is corrupt" in told


def train_on_a_rank(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    place, rows = {"rank": rank, "size": 2}, slice(2 * rank, 2 * rank + 2)
    whole = training(Path(folder) / "whole", **place)
    whole.fit(batches_to(12, rows))
    parts = training(Path(folder) / "parts", **place)
    with pytest.raises(RuntimeError, match="the data stream ended at step 8"):
        parts.fit(batches_to(8, rows))
    parts.checkpoints.wait()
    if rank == 0:
        damage(checkpoint.folder_of(Path(folder) / "parts", 6))
    dist.barrier()
    resumed = training(Path(folder) / "parts", **place)
    assert resumed.step == 3
    resumed.fit(batches_to(12, rows))
    for name, tensor in whole.backbone.state_dict().items():
        assert torch.equal(tensor, resumed.backbone.state_dict()[name]), name
    assert torch.equal(whole.head.centers, resumed.head.centers)


@pytest.mark.long
def test_resume_of_two_ranks_with_a_corrupt_checkpoint_takes_the_same_older_one(tmp_path):
    run_ranks(train_on_a_rank, (str(tmp_path),), 2)
    assert "step_00000006 is corrupt, step_00000003 is used instead" in (tmp_path / "parts/faults.log").read_text()


def restart_on_a_rank(rank: int, folder: Path, store: Store) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    place, rows = {"rank": rank, "size": 2}, slice(2 * rank, 2 * rank + 2)
    overrides = ["train.mirror_every=7", "head.sample_rate=0.5", "backbone.dropout=0.2"]
    whole = training(folder / "whole", *overrides, **place)
    whole.fit(batches_to(12, rows))
    place["stores"] = StoresByNode("a", {"a": store})
    parts = training(folder / "parts", *overrides, **place)
    with pytest.raises(RuntimeError, match="the data stream ended at step 8"):
        parts.fit(batches_to(8, rows))
    parts.checkpoints.wait()
    parts.mirror.wait()
    dist.barrier()
    resumed = training(folder / "parts", *overrides, **place)
    assert resumed.step == 6  # nobody said that workers were started again
    if rank == 0:
        resumed.run.add_restart("worker 1 died")
    dist.barrier()
    resumed = training(folder / "parts", *overrides, **place)
    assert resumed.step == 7
    resumed.fit(batches_to(12, rows))
    for name, tensor in whole.backbone.state_dict().items():
        assert torch.equal(tensor, resumed.backbone.state_dict()[name]), name
    assert torch.equal(whole.head.centers, resumed.head.centers)


@pytest.mark.long
def test_two_ranks_restarted_from_a_mirrored_state_end_as_if_they_had_never_stopped(tmp_path):
    with StoreManager() as manager:
        run_ranks(restart_on_a_rank, (tmp_path, manager.store("a")), 2)
    whole, parts = (read_metrics(tmp_path / name / "journal")["train/loss"] for name in ("whole", "parts"))
    assert [point[:2] for point in parts] == [point[:2] for point in whole]
    assert [step for step, *_ in whole] == [*range(1, 13)]


def test_best_checkpoint_over_a_resume_is_kept(tmp_path, monkeypatch):
    accuracies = {0: 0.5, 3: 0.9, 6: 0.7, 9: 0.8, 12: 0.8}

    def evaluate(self: Training) -> None:
        self.accuracy = accuracies[self.step]

    monkeypatch.setattr(Training, "evaluate", evaluate)
    options = ["evaluate.every=3", "train.keep_checkpoints=1"]
    first = training(tmp_path / "run", *options)
    with pytest.raises(RuntimeError, match="the data stream ended"):
        first.fit(batches_to(7))
    first.checkpoints.wait()
    resumed = training(tmp_path / "run", *options)
    assert (resumed.step, resumed.accuracy) == (6, 0.7)
    resumed.fit(batches_to(12))
    saved = {p.name: json.loads((p / PROGRESS).read_text()) for p in checkpoint.all_in(tmp_path / "run")}
    assert {name: progress["accuracy"] for name, progress in saved.items()} == {
        "step_00000003": 0.9,
        "step_00000012": 0.8,
    }
    assert saved["step_00000012"]["dataset"] == vars(FACTS)


def test_run_whose_last_checkpoint_cannot_be_written_has_no_outcome(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", fail)
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="No space left on device"):
        training(run, "train.epochs=0.5").fit(batches_to(3))
    assert not RunDirectory(run).has_outcome()


def test_workers_replaced_after_the_last_step_leave_the_outcome_as_it_is(tmp_path):
    run = tmp_path / "run"
    training(run).fit(batches_to(12))
    outcome = RunDirectory(run).read_outcome()
    training(run).fit(batches_to(12))
    assert RunDirectory(run).read_outcome() == outcome
    assert outcome["loss"] is not None
    training(run, "train.epochs=3").fit(batches_to(18))
    assert RunDirectory(run).read_outcome()["steps"] == 18


def test_non_finite_loss_while_a_checkpoint_is_written_waits_and_sets_it_aside(tmp_path):
    run = tmp_path / "run"
    broken = training(run, "train.checkpoint_every=1")

    def poisoned(start):
        for batch in batches(start, 12):
            if batch.step == 5:
                next(broken.backbone.parameters()).data.fill_(torch.nan)
            yield batch

    with pytest.raises(TrainingStoppedError) as caught:
        broken.fit(poisoned)
    good = checkpoint.folder_of(run, 4)
    assert checkpoint.all_in(run)[-1] == good
    assert f"the last good checkpoint is {good}" in str(caught.value)
    assert (run / "checkpoints" / "not_finite_step_00000005").is_dir()


def test_roll_back_discards_the_mirrored_states_and_mirrors_again(tmp_path):
    store = MirrorStore("a")
    options = ["train.mirror_every=1", "train.checkpoint_every=3", "train.on_nan=skip"]
    rolled_back = training(tmp_path / "run", *options, stores=StoresByNode("a", {"a": store}))
    steps = []

    def poisoned(start):
        rolled_back.mirror.wait()
        steps.append((start, sorted(delivered.part.step for delivered in store.delivered())))
        for batch in batches(start, 12):
            if batch.step == 5 and len(steps) == 1:
                next(rolled_back.backbone.parameters()).data.fill_(torch.nan)
            yield batch

    rolled_back.fit(poisoned)
    assert steps == [(0, []), (3, [])]
    assert sorted(delivered.part.step for delivered in store.delivered()) == [10, 11]
