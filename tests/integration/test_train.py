"""The road of a training run on a real local Ray: any number of workers, resume, NaN, and the files that it leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.backbones import registry
from rayface.config import Config
from rayface.evaluation.evaluate import evaluate
from rayface.models.model_files import load_model
from rayface.models.run_files import PROGRESS
from rayface.storage import RemotePath
from rayface.tracking import read_metrics
from rayface.training import fit
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing import tools as checkpoint_tools
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory
from rayface.training.trainer import train

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(drawn: Path, run: Path | str, **changes: object) -> Config:
    """A tiny run on the drawn set; `changes` are dotted keys with __ for the dot."""
    base = {
        "data.train": str(drawn),
        "data.window_images": 60,
        "train.output": str(run),
        "train.batch_size": 24,
        "train.log_every": 1,
        "train.precision": "fp32",
        "tracking.enabled": False,
    }
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.with_overrides(configs.load("debug"), {**base, **dotted})


def losses(run: Path) -> np.ndarray:
    return np.array([value for _, value, _ in read_metrics(run / "journal")["train/loss"]])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone `plain` without batch statistics and dropout, known here and in the workers."""
    worker = fit.train_worker

    # Nested, so that it travels to the workers by value: they cannot import tests.
    def register() -> None:
        from torch import nn

        from rayface.backbones.registry import BACKBONES

        def build(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
            del width, dropout
            convolution = nn.Conv2d(3, 8, 5, 4, 2)
            last = nn.Linear(8 * (image_size // 4) ** 2, embedding_size)
            return nn.Sequential(convolution, nn.PReLU(8), nn.Flatten(), last)

        BACKBONES["plain"] = build

    def register_and_train(job: dict[str, object]) -> None:
        register()
        worker(job)

    monkeypatch.setattr(fit, "train_worker", register_and_train)
    monkeypatch.setattr(registry, "BACKBONES", dict(registry.BACKBONES))
    register()


@pytest.mark.usefixtures("plain")
@pytest.mark.long
def test_train_on_pairs_with_two_workers_gives_the_losses_of_one(drawn, tmp_path):
    """Parts of 4 and 5 pairs; the steps of DCQ and F2C on up to seven ranks are tested in tests/heads."""
    head = {"head__name": "f2c", "head__options": {"pool_size": 4}}
    pairs = {**head, "train__batch_size": 9, "train__epochs": 1.0}
    curves = []
    for workers in (1, 2):
        run = tmp_path / f"{workers}"
        result = train(settings(drawn, run, backbone__name="plain", train__num_workers=workers, **pairs)).as_dict()
        curves.append(losses(run))
    assert len(curves[0]) == result["steps"] > 5
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.usefixtures("plain")
@pytest.mark.long
def test_train_with_any_number_of_workers_gives_the_same_losses(drawn, tmp_path):
    curves = {}
    # 23: no number of workers divides it.
    options = {"train__batch_size": 23, "data__shift": 2, "data__brightness": 0.2, "train__epochs": 2}
    for workers in (1, 2, 3):
        run = tmp_path / f"workers-{workers}"
        plain_net = {"backbone__name": "plain", "backbone__dropout": 0.0}
        train(settings(drawn, run, train__num_workers=workers, **plain_net, **options))
        curves[workers] = losses(run)
        assert read_metrics(run / "journal")["train/workers"][-1][1] == workers
    assert len(curves[1]) == 20
    assert curves[1][-1] < 0.8 * curves[1][0]
    assert curves[2] == pytest.approx(curves[1], rel=1e-4)
    assert curves[3] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.usefixtures("plain")
@pytest.mark.long
def test_train_in_a_store_resumed_with_one_worker_and_with_two_again_gives_the_losses_of_one(
    drawn, tmp_path, object_store, monkeypatch
):
    """As on a cluster that shrinks and grows; every session is on an empty disk."""
    plain_net = {"backbone__name": "plain", "backbone__dropout": 0.0, "schedule__name": "constant"}
    whole, run = tmp_path / "whole", RunDirectory(RemotePath(object_store.uri("run")))
    train(settings(drawn, whole, train__epochs=3, **plain_net))
    for epochs, workers in ((1, 2), (2, 1), (3, 2)):
        monkeypatch.setattr("platformdirs.user_state_path", lambda name, disk=tmp_path / f"disk{epochs}": disk / name)
        run.delete_results()  # as if it had been stopped here
        changes = {"train__epochs": epochs, "train__num_workers": workers, **plain_net}
        train(settings(drawn, run.path.uri, **changes), resume=run.has_started())
    found = run.read_metrics()
    assert [value for _, value, _ in found["train/loss"]] == pytest.approx(losses(whole), rel=1e-3)
    assert [int(workers) for workers, _ in groupby(value for _, value, _ in found["train/workers"])] == [2, 1, 2]


@pytest.mark.long
def test_train_resumed_from_a_checkpoint_equals_an_uninterrupted_run(drawn, tmp_path):
    run = tmp_path / "run"
    options = {
        "schedule__name": "constant",
        "train__epochs": 2,
        "train__num_workers": 2,
        "train__checkpoint_every": 7,
        "backbone__dropout": 0.2,
        "head__sample_rate": 0.5,
    }
    train(settings(drawn, run, **options))
    whole, model = losses(run), load_model(run).module.state_dict()
    # As if it had been stopped after step 7 of 20: later checkpoints and metrics and the results are gone.
    for name in ("result.json", "outcome.json", "model.safetensors"):
        (run / name).unlink()
    for saved in checkpoint.all_in(run)[1:]:
        (saved / PROGRESS).unlink()
    journal = run / "journal" / "rank0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if json.loads(line).get("step", 0) <= 7))
    assert np.array_equal(losses(run), whole[:7])
    train(settings(drawn, run, **options), resume=True)
    assert np.array_equal(losses(run), whole)
    resumed = load_model(run).module.state_dict()
    assert all(torch.equal(resumed[key], model[key]) for key in model)


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """Config and result of a run that is evaluated and logged to MLflow."""
    folder = tmp_path_factory.mktemp("finished")
    config = settings(
        drawn,
        folder / "run",
        schedule__name="constant",
        train__epochs=3,
        evaluate__pairs=str(drawn / "pairs.csv"),
        evaluate__data=str(drawn),
        evaluate__every=10,
        tracking__enabled=True,
        tracking__uri=f"sqlite:///{folder / 'mlflow.db'}",
        tracking__experiment="tests",
    )
    return config, train(config).as_dict()


def test_train_to_the_end_leaves_model_report_and_results_and_is_not_overwritten(finished):
    config, result = finished
    run = Path(config.train.output)
    assert result["steps"] == 30
    assert result["tracking_delivered"]
    assert result["num_pairs"] == 100
    # Whoever takes the file for another run does not mean this directory.
    assert configs.load(file=run / "config.yaml") == configs.with_overrides(config, {"train.output": None})
    accuracy = read_metrics(run / "journal")["eval/accuracy"]
    assert [step for step, _, _ in accuracy] == [0, 10, 20, 30]
    assert accuracy[-1][1] == result["accuracy_mean"]
    assert json.loads((run / "model.json").read_text())["backbone"] == "mini"
    assert (run / "report.html").stat().st_size > 10_000
    check_mlflow(config.tracking.uri, run)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a finished run: choose another directory"):
            train(config, resume=resume)


def check_mlflow(store: str, run: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    (logged,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["head.margin"] == "cosface"
    assert len(logged.data.params["dataset.digest"]) >= 32
    assert "git_commit" in logged.data.tags
    history = [(m.step, m.value) for m in client.get_metric_history(logged.info.run_id, "train/loss")]
    assert sorted(history) == [(s, v) for s, v, _ in read_metrics(run / "journal")["train/loss"]]
    saved = checkpoint_tools.show(run).as_dict()["mlflow"]
    assert saved == {"run_id": logged.info.run_id, "last_step": 30}
    names = {artifact.path for artifact in client.list_artifacts(logged.info.run_id)}
    assert {"config.yaml", "model.json", "report.html", "plots"} <= names


@pytest.mark.long
def test_train_with_a_non_finite_loss_stops_names_the_last_valid_checkpoint_and_is_resumed(drawn, tmp_path, finished):
    run = shutil.copytree(finished[0].train.output, tmp_path / "run")
    common = {"train__checkpoint_every": 1, "train__epochs": 4, "schedule__name": "constant"}
    (run / "result.json").unlink()
    with pytest.raises(TrainingStoppedError) as caught:
        train(settings(drawn, run, optim__lr=1e18, optim__clip_norm=None, **common), resume=True)
    message = str(caught.value)
    good = checkpoint.all_in(run)[-1]
    assert "\n" not in message
    assert f"the last good checkpoint is {good};" in message
    assert "optim.lr (now 1e+18)" in message
    assert not (run / "result.json").exists()
    # What was saved with the broken weights is set aside, so a resume does not meet them again.
    assert list((run / "checkpoints").glob("not_finite_*"))
    result = train(settings(drawn, run, optim__lr=0.01, **common), resume=True).as_dict()
    assert result["steps"] == 40
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": []}, "data.train: is not set"),
        ({"data__train": "/nowhere/faces"}, "/nowhere/faces"),
        ({"train__batch_size": 3, "train__num_workers": 4}, "train.num_workers: 4: must not exceed train.batch_size=3"),
        ({"train__batch_size": 1000}, "must not exceed the 240 samples"),
        ({"head__margin": "cosfac"}, "head.margin 'cosfac' must be one of"),
        (
            {"train__static_graph": True, "train__max_batch_per_worker": 8},
            "train.static_graph: true: cannot be combined with gradient accumulation",
        ),
        ({"train__static_graph": True, "backbone__compile": True}, "cannot be combined with backbone.compile"),
        ({"evaluate__pairs": "x.csv"}, "requires evaluate.data"),
        ({"train__device": "cuda"}, "train.num_workers: 1: each needs 1 CPU and 1 GPU, the cluster has room for 0"),
        ({"train__num_workers": 6}, "train.num_workers: 6: each needs 1 CPU, the cluster has room for 4"),
        ({"train__output": "tape://bucket/run"}, "tape://bucket/run"),
        ({"backbone__name": "r51"}, "r51"),
    ],
)
def test_train_with_bad_settings_is_refused_in_one_line_before_anything_starts(drawn, tmp_path, changes, message):
    with pytest.raises(ValueError, match=r".") as caught:
        train(settings(drawn, tmp_path / "run", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_train_into_an_output_that_cannot_be_used_is_refused(drawn, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        train(settings(drawn, tmp_path / "file" / "run"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("")
    with pytest.raises(ValueError, match="is not empty: resume its run with --resume"):
        train(settings(drawn, tmp_path / "full"))
    with pytest.raises(ValueError, match="is not a run directory"):
        train(settings(drawn, tmp_path / "full"), resume=True)


@pytest.mark.long
def test_train_that_is_interrupted_saves_a_checkpoint_and_names_the_command_to_resume(drawn, tmp_path):
    run = tmp_path / "run"
    arguments = ["--preset=debug", f"data.train={drawn}", f"train.output={run}", "train.epochs=10000"]
    command = [sys.executable, "-m", "rayface.cli", "train", *arguments, "tracking.enabled=false"]
    journal = run / "journal" / "rank0.jsonl"

    def heed_interrupts() -> None:
        """A test run in the background ignores SIGINT, and what it starts inherits that."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        try:
            deadline = time.monotonic() + 300
            while not (journal.exists() and read_metrics(journal.parent)):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    (saved,) = checkpoint.all_in(run)[-1:]
    last = read_metrics(journal.parent)["train/loss"][-1][0]
    assert json.loads((saved / PROGRESS).read_text())["step"] == last
    assert f"the last checkpoint is {saved}; resume with: rayface train --resume train.output={run}" in errors


@pytest.mark.long
def test_train_on_a_bare_directory_gives_workers_the_index_of_the_driver(drawn, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in drawn.glob("*.tar"):
        shutil.copy(shard, bare)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a home that cannot be written
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = fit.train_worker

    def train_without_opening(job: dict[str, object]) -> None:
        from rayface.data import dataset

        dataset.load_part = None  # a worker that opens the data would fail
        worker(job)

    monkeypatch.setattr(fit, "train_worker", train_without_opening)
    result = train(settings(bare, tmp_path / "run", train__num_workers=1, train__epochs=0.2)).as_dict()
    assert result["faults"] == 0


@pytest.mark.long
def test_train_on_real_images_of_two_directories_ends_with_an_evaluated_model(faces, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    config = settings(
        faces,
        tmp_path / "run",
        data__train=[str(faces / "celeba_wild"), str(faces / "celeba_small")],
        data__join="labels",
        evaluate__pairs=str(faces / "lfw_pairs" / "lfw_pairs.csv"),
        evaluate__data=str(faces / "lfw_pairs"),
        train__num_workers=2,
        train__batch_size=128,
        train__epochs=0.2,
    )
    result = train(config).as_dict()
    assert result["steps"] == 20
    assert result["faults"] == 0
    assert result["num_pairs"] == 6000
    assert 0.5 < result["accuracy_mean"] < 0.9
    assert set(result["tar_at_far"]) == {"1e-01", "1e-02", "1e-03"}
    given = {"evaluate.model": str(tmp_path / "run"), "evaluate.out": str(tmp_path / "out")}
    loaded = evaluate(configs.with_overrides(config, given))
    # The run evaluates under its own precision, the verb in float32.
    assert loaded.as_dict()["accuracy_mean"] == pytest.approx(result["accuracy_mean"], abs=0.01)
