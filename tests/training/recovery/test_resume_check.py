"""Which settings a run can be resumed with: refused before anything is written exactly where loading would fail."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from rayface import config as configs
from rayface.data.streaming.weighted_order import WeightedOrder
from rayface.models.run_files import all_in
from rayface.training.checkpointing.progress import Progress
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.run_directory import RunDirectory
from tests.training.small_run import SAMPLE_ORDER, config_of, training


@pytest.mark.parametrize(
    ("change", "refused_for"),
    [
        ("optim.momentum=0.9", "optim.momentum: 0.9: the run was started with 0.0, and its checkpoint has no head.mom"),
        ("optim.name=adamw", "optim.name: 'adamw'"),
        ("optim.weight_decay=0.1", ""),
        ("head.margin=adaface", "head.margin: 'adaface': the run was started with 'cosface'"),
        ("head.margin=curricularface", "head.margin: 'curricularface'"),
        ("head.margin=arcface", ""),
        ("head.storage_dtype=bf16", ""),
        ("head.sample_rate=0.5", ""),
        ("head.center_update=dense", ""),
        ("head.host_memory=true", ""),
        ("schedule.name=cosine", ""),
        ("schedule.name=fastface", "schedule.name"),
        ("schedule.name=plateau", "schedule.name"),
        ("backbone.width=0.25", "backbone.width: 0.25: the run was started with 0.5"),
        ("backbone.embedding_size=32", "backbone.embedding_size: 32"),
        ("backbone.name=mbf", "backbone.name: 'mbf'"),
        ("backbone.dropout=0.2", ""),
        ("data.image_size=48", "data.image_size: 48"),
        ("train.seed=3", ""),
    ],
)
def test_resume_with_a_changed_setting_is_refused_exactly_where_loading_fails(
    started_run: Path, change: str, refused_for: str
):
    config = configs.with_overrides(config_of(), [change])
    refusal, failure = "", ""
    try:
        check_resumable(RunDirectory(started_run), config, SAMPLE_ORDER)
    except ValueError as error:
        refusal = str(error)
    try:
        training(started_run, config)
    except BaseException as error:  # DCP's is no Exception
        failure = repr(error)
    assert bool(refusal) == bool(failure), (refusal, failure)
    assert refused_for in refusal
    assert bool(refused_for) == bool(refusal)
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("started", "change", "refused_for"),
    [
        (
            "head.name=dcq",
            "head.options.queue_size=64",
            r"^head.options: {'queue_size': 64}: .* has head.queue of shape ",
        ),
        ("head.margin=adaface", "train.seed=3", ""),
    ],
)
def test_resume_of_a_head_with_a_state_of_its_own_is_refused_for_another_one(
    tmp_path: Path, started: str, change: str, refused_for: str
) -> None:
    run = training(tmp_path, config_of(started))
    run.save_checkpoint()
    run.checkpoints.wait()
    with pytest.raises(ValueError, match=refused_for) if refused_for else nullcontext():
        check_resumable(RunDirectory(tmp_path), config_of(started, change), SAMPLE_ORDER)


def test_resume_with_another_order_of_samples_is_refused(started_run: Path) -> None:
    with pytest.raises(ValueError, match=r"draws its samples in another order .*chunks of 8 images"):
        check_resumable(RunDirectory(started_run), config_of(), replace(SAMPLE_ORDER, chunk_images=1))


def test_resume_with_the_weights_it_was_started_with_is_accepted(
    started_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = WeightedOrder(**vars(SAMPLE_ORDER), sizes=(3, SAMPLE_ORDER.num_samples - 3), draws=(8, 16))
    read = Progress.read

    def of_weighted_run(folder: Path) -> Progress:
        return replace(read(folder), plan=json.loads(json.dumps(vars(order))))

    monkeypatch.setattr(Progress, "read", of_weighted_run)
    check_resumable(RunDirectory(started_run), config_of(), order)
    with pytest.raises(ValueError, match="draws its samples in another order"):
        check_resumable(RunDirectory(started_run), config_of(), replace(order, draws=(16, 16)))


def test_resume_that_would_end_before_the_step_of_the_run_is_refused(
    started_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finished the run for good, with the weights of the later step."""
    read = Progress.read
    monkeypatch.setattr(Progress, "read", lambda folder: replace(read(folder), step=5))
    config = configs.with_overrides(config_of(), ["train.epochs=0.01"])
    with pytest.raises(
        ValueError, match=r"train\.epochs: 0\.01: ends at step 1, the run is at step 5: must be at least"
    ):
        check_resumable(RunDirectory(started_run), config, SAMPLE_ORDER)


def test_resume_at_the_last_step_is_accepted_and_a_step_later_refused(
    started_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, read = config_of(), Progress.read
    last = round(config.train.epochs * SAMPLE_ORDER.steps_per_epoch)
    monkeypatch.setattr(Progress, "read", lambda folder: replace(read(folder), step=last))
    check_resumable(RunDirectory(started_run), config, SAMPLE_ORDER)
    monkeypatch.setattr(Progress, "read", lambda folder: replace(read(folder), step=last + 1))
    with pytest.raises(ValueError, match=f"ends at step {last}, the run is at step {last + 1}"):
        check_resumable(RunDirectory(started_run), config, SAMPLE_ORDER)


def test_resume_of_a_run_with_the_fused_kernel_is_accepted_on_a_driver_without_a_gpu(started_run: Path) -> None:
    config = configs.with_overrides(config_of(), ["head.kernel=fused"])
    check_resumable(RunDirectory(started_run), config, SAMPLE_ORDER)


@pytest.mark.parametrize("damaged", ["progress.json", ".metadata"])
@pytest.mark.parametrize("content", [b"", b"{", None])
def test_resume_with_a_corrupt_newest_checkpoint_is_checked_by_the_one_before(
    started_run: Path, tmp_path: Path, damaged: str, content: bytes | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(started_run, run)
    (newest,) = all_in(run)
    later = newest.with_name("step_00000099")
    shutil.copytree(newest, later)
    (later / damaged).unlink()
    if content is not None:
        (later / damaged).write_bytes(content)
    check_resumable(RunDirectory(run), config_of(), SAMPLE_ORDER)
    with pytest.raises(ValueError, match=r"^backbone\.width: 0\.25"):
        check_resumable(RunDirectory(run), config_of("backbone.width=0.25"), SAMPLE_ORDER)
    shutil.rmtree(newest)
    check_resumable(RunDirectory(run), config_of("backbone.width=0.25"), SAMPLE_ORDER)  # the workers refuse it
