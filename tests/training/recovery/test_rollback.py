"""Roll-backs, pieces of a batch, other numbers of workers, and the state of the generators; plain processes, no Ray."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from rayface import config as configs
from rayface.backbones.registry import BACKBONES
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.windows import rank_rows
from rayface.tracking import read_metrics
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.checkpointing.state import load_rng, rng_tensors
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory

SAMPLE_ORDER = SampleOrder(num_samples=66, batch_size=11)  # 6 steps an epoch; parts of 3 and 4 images on three ranks
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def build_plain(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
    """A net without batch statistics and dropout."""
    del width, dropout
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Flatten(), nn.Linear(8 * (image_size // 4) ** 2, embedding_size))


def training(run: Path, *overrides: str, rank: int = 0, size: int = 1) -> Training:
    BACKBONES["plain"] = build_plain  # also in spawned ranks
    base = ["train.epochs=2", "train.checkpoint_every=4", "train.precision=fp32", "train.log_every=1"]
    options = ["backbone.name=plain", "backbone.dropout=0", "data.image_size=32", "data.train=unused", *base]
    config = configs.load("debug", None, [*options, *overrides])
    world = World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, SAMPLE_ORDER, num_classes=6, dataset=FACTS)


def batches_for(net: Training, poisoned: tuple[int, ...] = (), stop: int = 12):
    poison(net, poisoned)
    rows = rank_rows(SAMPLE_ORDER.batch_size, net.world.rank, net.world.size)

    def batches_from(start: int):
        for step in range(start, stop):
            draw = np.random.default_rng(step)
            images = torch.from_numpy(draw.integers(0, 256, (SAMPLE_ORDER.batch_size, 32, 32, 3), dtype=np.uint8))
            labels = torch.from_numpy(draw.integers(0, 6, SAMPLE_ORDER.batch_size))
            yield Batch(step=step, rows=rows, images=images[rows], labels=labels[rows], faults=())

    return batches_from


def poison(net: Training, steps: tuple[int, ...]) -> None:
    """Have the images of these steps hold NaN as long as the rate is the first one."""
    prepare = net.train_step.prepare

    def broken(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = prepare(batch)
        return images * (torch.nan if batch.step in steps and net.recovery.rate_factor == 1 else 1), labels

    net.train_step.prepare = broken


def test_head_error_other_than_non_finite_embeddings_is_not_rolled_back(tmp_path):
    net = training(tmp_path / "run", "train.on_nan=skip")
    net.head.embedding_size += 1
    with pytest.raises(ValueError, match="embeddings of shape"):
        net.fit(batches_for(net))
    assert net.recovery.rollbacks == 0


def state_of(net: Training) -> dict[str, torch.Tensor]:
    return {"centers": net.head.centers, **net.backbone.state_dict()}


def same(one: Training, other: Training) -> bool:
    theirs = state_of(other)
    return all(torch.equal(value, theirs[name]) for name, value in state_of(one).items())


def losses(run: Path) -> dict[int, float]:
    return {step: value for step, value, _ in read_metrics(run / "journal")["train/loss"]}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    BACKBONES.pop("plain", None)


@pytest.mark.parametrize("step", [0, 6])
def test_roll_back_that_skips_a_batch_equals_a_run_without_it(tmp_path, step):
    poisoned, clean = training(tmp_path / "a", "train.on_nan=skip"), training(tmp_path / "b", "train.on_nan=skip")
    poisoned.fit(batches_for(poisoned, poisoned=(step,)))
    clean.recovery.skipped.append(step)
    clean.fit(batches_for(clean))
    assert poisoned.recovery.rollbacks == 1
    assert same(poisoned, clean)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert sorted(losses(tmp_path / "a")) == [s + 1 for s in range(12) if s != step]
    rates = {s: rate for s, rate, _ in read_metrics(tmp_path / "a" / "journal")["train/lr"]}
    assert rates == {s: pytest.approx(0.1 * (1 - s / 12)) for s in rates}  # as if none were left out
    line = f"rolled back to step {step - step % 4}, training continues without the batch of step {step}"
    assert line in (tmp_path / "a" / "faults.log").read_text()


def test_roll_back_that_lowers_the_rate_holds_over_a_resume(tmp_path):
    options = ["train.on_nan=lower_lr", "train.nan_lr_factor=0.25"]
    poisoned, clean = training(tmp_path / "a", *options), training(tmp_path / "b", *options)
    with pytest.raises(RuntimeError, match="the data stream ended at step 9"):
        poisoned.fit(batches_for(poisoned, poisoned=(6,), stop=9))
    poisoned.checkpoints.wait()
    resumed = training(tmp_path / "a", *options)
    assert (resumed.step, resumed.recovery.rate_factor) == (8, 0.25)
    resumed.fit(batches_for(resumed))

    def lowered(start: int):
        for batch in batches_for(clean)(start):
            clean.recovery.rate_factor = 1.0 if batch.step < 4 else 0.25
            yield batch

    clean.fit(lowered)
    assert same(resumed, clean)
    rates = {step: rate for step, rate, _ in read_metrics(tmp_path / "a" / "journal")["train/lr"]}
    plain = {step: rate for step, rate, _ in read_metrics(tmp_path / "b" / "journal")["train/lr"]}
    assert rates[8] == plain[8]


@pytest.mark.parametrize("options", [["train.on_nan=skip"], ["train.on_nan=lower_lr"]])
def test_roll_back_before_workers_die_is_kept(tmp_path, options):
    """The batch is broken once only: were the roll-back forgotten, the run would go on without it."""
    whole, killed = training(tmp_path / "a", *options), training(tmp_path / "b", *options)
    whole.fit(batches_for(whole, poisoned=(6,)))
    with pytest.raises(RuntimeError, match="the data stream ended at step 7"):
        killed.fit(batches_for(killed, poisoned=(6,), stop=7))
    killed.checkpoints.wait()
    again = training(tmp_path / "b", *options)
    assert (again.step, again.recovery) == (4, killed.recovery)
    again.fit(batches_for(again))
    assert again.recovery.rollbacks == 1
    assert same(again, whole)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_roll_back_more_often_than_allowed_stops_the_run(tmp_path):
    net = training(tmp_path / "run", "train.on_nan=skip", "train.max_rollbacks=2")
    with pytest.raises(TrainingStoppedError, match=r"NaN|the loss") as caught:
        net.fit(batches_for(net, poisoned=(5, 6, 7)))
    assert net.recovery.skipped == [5, 6]
    assert "after 2 roll-backs; the last good checkpoint is" in str(caught.value)
    assert not (tmp_path / "run" / "rollbacks.json").exists()  # a person goes on from the checkpoint, as it says


def test_roll_back_to_a_step_again_sets_its_checkpoint_aside_again(tmp_path):
    net = training(tmp_path / "run", "train.on_nan=lower_lr", "train.max_rollbacks=2")
    prepare = net.train_step.prepare

    def broken(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = prepare(batch)
        return images * (torch.nan if batch.step == 8 else 1), labels

    net.train_step.prepare = broken
    with pytest.raises(TrainingStoppedError, match="after 2 roll-backs"):
        net.fit(batches_for(net))
    assert [folder.name for folder in checkpoint.all_in(tmp_path / "run")] == ["step_00000000", "step_00000004"]
    assert (tmp_path / "run" / "checkpoints" / "not_finite_step_00000008").is_dir()


def test_micro_batches_of_a_step_equal_the_whole_batch(tmp_path):
    whole, pieces = training(tmp_path / "a"), training(tmp_path / "b", "train.max_batch_per_worker=5")
    whole.fit(batches_for(whole))
    pieces.fit(batches_for(pieces))
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert [a[s] for s in a] == pytest.approx([b[s] for s in a], rel=1e-4)
    assert torch.allclose(whole.head.centers, pieces.head.centers, atol=1e-5)


def test_rescale_lr_steps_per_piece_at_its_share_of_the_rate(tmp_path):
    """With weights that hardly move, so many small steps are one large one."""
    options = ["optim.lr=1e-6", "optim.momentum=0", "optim.clip_norm=null", "optim.weight_decay=0"]
    pieces = [*options, "train.max_batch_per_worker=4", "train.resize=rescale_lr"]
    whole, parts = training(tmp_path / "a", *options), training(tmp_path / "b", *pieces)
    before = whole.backbone[2].weight.clone()
    for net in (whole, parts):
        with pytest.raises(RuntimeError, match="the data stream ended at step 1"):
            net.fit(batches_for(net, stop=1))
    moved, also = (net.backbone[2].weight.double() - before for net in (whole, parts))
    assert moved.norm() > 0
    assert (moved - also).norm() < 0.05 * moved.norm()


def train_in_parts(rank: int, folder: str, overrides: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    net = training(Path(folder) / "parts", *overrides, rank=rank, size=3)
    with pytest.raises(RuntimeError, match="the data stream ended at step 8"):
        net.fit(batches_for(net, poisoned=(6,), stop=8))
    net.checkpoints.wait()
    dist.destroy_process_group()


def test_resume_with_workers_that_do_not_divide_the_batch_goes_on(tmp_path):
    """1, then 3 (parts of 3 and 4 images, worked through in pieces), then 1; rolled back on the way."""
    options = ["train.on_nan=skip", "head.sample_rate=1"]
    whole = training(tmp_path / "whole", *options)
    whole.fit(batches_for(whole, poisoned=(6,)))
    parts = training(tmp_path / "parts", *options)
    with pytest.raises(RuntimeError, match="the data stream ended at step 4"):
        parts.fit(batches_for(parts, stop=4))
    parts.checkpoints.wait()
    mp.spawn(train_in_parts, (str(tmp_path), [*options, "train.max_batch_per_worker=2"]), 3)
    last = training(tmp_path / "parts", *options)
    assert (last.step, last.recovery.skipped) == (8, [6])
    last.fit(batches_for(last))
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert sorted(a) == sorted(b) == [*range(1, 7), *range(8, 13)]
    assert [a[s] for s in sorted(a)] == pytest.approx([b[s] for s in sorted(a)], rel=1e-4)
    (saved,) = checkpoint.all_in(tmp_path / "parts")[-1:]
    progress = json.loads((saved / checkpoint.PROGRESS).read_text())
    assert progress["recovery"] == {"skipped": [6], "rate_factor": 1.0, "rollbacks": 1}
    assert progress["workers"] == 1
    assert progress["mlflow"]["last_step"] == 12
    assert progress["config"]["head"]["sample_rate"] == 1


def test_load_rng_of_saved_generators_continues_them():
    device = torch.device("cpu")
    random.gauss(0, 1)  # leaves a second number waiting
    saved = rng_tensors(3, device)
    first = [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]
    load_rng({name: tensor.clone() for name, tensor in saved.items()}, device)
    assert [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()] == first
    assert {name.split(".")[1] for name in saved} == {"3"}
