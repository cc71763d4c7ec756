"""Roll-backs: skipped batches, lowered rates, resume, other numbers of workers; plain processes, no Ray."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayface.config import TrainConfig
from rayface.data.streaming.batches import Batch
from rayface.models.run_files import PROGRESS
from rayface.tracking import read_metrics
from rayface.training.checkpointing import checkpoint
from rayface.training.recovery.rollback import NotFiniteError, Recovery, TrainingStoppedError, remembered, stopped
from rayface.training.run_directory import RunDirectory
from tests.ranks import run_ranks
from tests.training.plain_training import batches_for, losses, same, training


def test_recovery_lowers_the_rate_again_until_no_roll_back_is_left():
    train = TrainConfig(on_nan="lower_lr", nan_lr_factor=0.5, max_rollbacks=2)
    own = Recovery()
    words = []
    while own.may_roll_back(train):
        words.append(own.change(7, train))
    assert words == ["at 0.5 times the learning rate", "at 0.25 times the learning rate"]
    assert own == Recovery(rate_factor=0.25, rollbacks=2)
    assert not Recovery().may_roll_back(TrainConfig(on_nan="stop"))


def test_remembered_is_the_state_of_the_later_roll_back(tmp_path):
    run, saved = RunDirectory(tmp_path), Recovery(skipped=[3], rollbacks=1)
    assert remembered(run, saved) == saved
    for stored in (Recovery(skipped=[3, 9], rollbacks=2), Recovery()):
        stored.remember(run)
        assert remembered(run, saved) == max(stored, saved, key=lambda each: each.rollbacks)


@pytest.mark.parametrize(
    ("good", "rollbacks", "words"),
    [
        (["a", "b"], 2, "x after 2 roll-backs; the last good checkpoint is b; resume from it with"),
        ([], 0, "x; there is no good checkpoint; start a new run with"),
    ],
)
def test_stopped_names_the_last_good_checkpoint_and_a_remedy(good, rollbacks, words):
    error = stopped(NotFiniteError("x", step=4, bad_from=4), good, rollbacks, 0.1)
    assert str(error) == f"{words} a lower optim.lr (now 0.1) or train.precision=fp32"


def test_roll_back_of_another_error_of_the_head_does_not_happen(tmp_path):
    net = training(tmp_path / "run", "train.on_nan=skip")
    net.head.embedding_size += 1
    with pytest.raises(ValueError, match="embeddings of shape"):
        net.fit(batches_for(net))
    assert net.recovery.rollbacks == 0


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


def train_in_parts(rank: int, folder: str, overrides: list[str]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    net = training(Path(folder) / "parts", *overrides, rank=rank, size=3)
    with pytest.raises(RuntimeError, match="the data stream ended at step 8"):
        net.fit(batches_for(net, poisoned=(6,), stop=8))
    net.checkpoints.wait()


@pytest.mark.long
def test_resume_with_workers_that_do_not_divide_the_batch_goes_on(tmp_path):
    """1, then 3 (parts of 3 and 4 images, worked through in pieces), then 1; rolled back on the way."""
    options = ["train.on_nan=skip", "head.sample_rate=1"]
    whole = training(tmp_path / "whole", *options)
    whole.fit(batches_for(whole, poisoned=(6,)))
    parts = training(tmp_path / "parts", *options)
    with pytest.raises(RuntimeError, match="the data stream ended at step 4"):
        parts.fit(batches_for(parts, stop=4))
    parts.checkpoints.wait()
    run_ranks(train_in_parts, (str(tmp_path), [*options, "train.max_batch_per_worker=2"]), 3)
    last = training(tmp_path / "parts", *options)
    assert (last.step, last.recovery.skipped) == (8, [6])
    last.fit(batches_for(last))
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert sorted(a) == sorted(b) == [*range(1, 7), *range(8, 13)]
    assert [a[s] for s in sorted(a)] == pytest.approx([b[s] for s in sorted(a)], rel=1e-4)
    (saved,) = checkpoint.all_in(tmp_path / "parts")[-1:]
    progress = json.loads((saved / PROGRESS).read_text())
    assert progress["recovery"] == {"skipped": [6], "rate_factor": 1.0, "rollbacks": 1}
    assert progress["workers"] == 1
    assert progress["mlflow"]["last_step"] == 12
    assert progress["config"]["head"]["sample_rate"] == 1
