"""The road of a sweep of real training runs: a killed driver is resumed, and one sweep prunes."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from ray.cluster_utils import Cluster

from rayface import config as configs
from rayface.cli.command_line import _outcome
from rayface.data.dataset import open_dataset
from rayface.tracking import read_metrics
from rayface.training.checkpointing import checkpoint
from rayface.training.run_output import resolve
from rayface.training.schedules import FastFace
from tests.clusters import light_nodes

CONFIG = {
    "data": {"window_images": 60},
    "train": {"batch_size": 24, "precision": "fp32", "checkpoint_every": 20},
    "optim": {"clip_norm": None},
    "tracking": {"experiment": "sweeps"},
}
# Trial 0 breaks, 1 is short, 2 takes 10 epochs, 3 would too but learns nothing and is given up at step 20.
FASTFACE = {"lambda_total": 20.0, "alpha_total": 40.0, "tolerance": 0.05}  # lowers the rate every 11 steps
KILLED = {
    "preset": "debug",
    "config": {**CONFIG, "schedule": {"name": "fastface", **FASTFACE}},
    "search": {
        "optim.lr": [1.0e30, 0.01, 0.1, 1.0e-6],
        "train.epochs": {"choices": [10], "when": {"optim.lr": [0.1, 1.0e-6]}},
    },
    "objectives": [{"metric": "loss", "mode": "min"}],
    "heatmaps": [["optim.lr", "train.epochs"]],
    "sweep": {"sampler": "grid", "trials": 9, "pruner": "asha", "min_steps": 20, "reduction_factor": 2},
}
SHORT = {
    "preset": "debug",
    "config": CONFIG,
    "search": {"optim.lr": [0.01, 0.1]},
    "objectives": [{"metric": "loss", "mode": "min"}],
    "sweep": {"sampler": "grid"},
}
STATES = ["FAIL", "COMPLETE", "COMPLETE", "PRUNED"]
# Two trials at once, each with faces of its own.
PRUNING = {
    "preset": "debug",
    "config": CONFIG,
    "prune": {"keep": 0.5},
    "search": {"prune.method": ["face_nms", "random"]},
    "objectives": [{"metric": "accuracy_mean", "mode": "max"}, {"metric": "seconds", "mode": "min"}],
    "sweep": {"sampler": "grid", "concurrency": 2},
}


def command(spec: dict[str, Any], folder: Path, *more: str) -> list[str]:
    (folder / "try.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    tune = [sys.executable, "-m", "rayface.cli", "tune", str(folder / "try.yaml"), "--json"]
    return [*tune, f"sweep.output={folder / 'sweep'}", *more]


def result_of(arguments: list[str]) -> dict[str, Any]:
    """What a sweep prints, which must be nothing but one line of JSON."""
    return ended(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    return json.loads(line)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 400
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def kill_trial(process: subprocess.Popen[str], trial: Path) -> None:
    """Kill the process of a sweep that works on a trial, which has locked its folder."""
    import psutil  # Ray brings it

    def owners() -> list[psutil.Process]:
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # Ray writes a process's title anew with each call: for a moment there is none
                if "ImplicitFunc" in "".join(each.cmdline()) and any(
                    file.path == str(trial / ".lock") for file in each.open_files()
                ):
                    found.append(each)
        return found

    (owner,) = wait_for(process, owners)
    owner.kill()


def results(sweep: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sweep.glob("trials/*/result.json")}


@pytest.fixture(scope="module")
def resumed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is left of a sweep whose driver was killed at trial 2, and trial 2's own process when it was resumed."""
    folder = tmp_path_factory.mktemp("killed")
    start = command(KILLED, folder, f"data.train={drawn}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as process:
        wait_for(process, lambda: list(folder.glob("sweep/trials/0002/checkpoints/step_*/progress.json")))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = results(folder / "sweep")
    trial = folder / "sweep" / "trials" / "0002"
    again = command(KILLED, folder, "--resume")
    with subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # Only then what is saved is of this session: workers of the killed one may finish a checkpoint.
        wait_for(process, lambda: len(json.loads((trial / "sessions.json").read_text())["sessions"]) == 2)
        saved = set(checkpoint.all_in(trial))
        wait_for(process, lambda: set(checkpoint.all_in(trial)) - saved)
        kill_trial(process, trial)
        result = ended(process)
    return {"folder": folder, "sweep": folder / "sweep", "finished": finished, "result": result}


@pytest.mark.usefixtures("local_ray")
def test_sweep_of_two_trials_ends_with_the_better_one_and_a_report(drawn, tmp_path, capsys):
    _, _, _, *arguments = command(SHORT, tmp_path, f"data.train={drawn}", "tracking.enabled=false")
    assert _outcome(arguments) == (0, "")
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert [len(results(tmp_path / "sweep")), result["complete"]] == [2, 2], result
    assert (tmp_path / "sweep" / "report.html").stat().st_size > 1000


def trials_of(sweep: Path, storage: str) -> list[optuna.trial.FrozenTrial]:
    (study,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=study.study_name, storage=storage).get_trials()


@pytest.mark.long
def test_sweep_resumed_skips_finished_trials_and_resumes_the_interrupted_one(resumed):
    sweep, result = resumed["sweep"], resumed["result"]
    assert [path.parent.name for path in resumed["finished"]] == ["0001"]
    assert resumed["finished"].items() < results(sweep).items()
    trials = trials_of(sweep, f"sqlite:///{sweep / 'study.db'}")
    assert [trial.state.name for trial in trials] == STATES
    assert (result["complete"], result["fail"], result["pruned"]) == (2, 1, 1)
    assert "a lower optim.lr (now 1e+30)" in trials[0].user_attrs["reason"]
    assert [set(trial.params) for trial in trials[1:3]] == [{"optim.lr"}, {"optim.lr", "train.epochs"}]
    losses = [read_metrics(sweep / "trials" / f"{number:04d}" / "journal")["train/loss"] for number in range(4)]
    assert [step for step, _, _ in losses[2]] == list(range(1, 101))  # every step once, over the kill
    assert trials[2].values == [losses[2][-1][1]]
    check_rates(read_metrics(sweep / "trials" / "0002" / "journal"), 0.1)
    assert result["best"]["trial"] == 2
    assert resolve(None, sweep / "best.yaml", [], resume=False).optim.lr == 0.1


def check_rates(metrics: dict[str, Any], first: float) -> None:
    """FastFace's rates follow from the losses, also where the run was killed."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=first)
    schedule = FastFace(optimizer, total_steps=100, **FASTFACE)
    for (_, loss, _), (_, rate, _) in zip(metrics["train/loss"], metrics["train/lr"], strict=True):
        schedule.step(loss)
        assert optimizer.param_groups[0]["lr"] == rate
    assert rate < first
    assert len(metrics["train/detector"]) == 99


@pytest.mark.long
def test_sweep_resumed_counts_the_seconds_of_all_sessions(resumed):
    sweep, run = resumed["sweep"], resumed["sweep"] / "trials" / "0002"
    for folder, seconds in (
        (sweep, resumed["result"]["seconds"]),
        (run, json.loads((run / "result.json").read_text())["seconds"]),
    ):
        took = [session[1] for session in json.loads((folder / "sessions.json").read_text())["sessions"]]
        assert len(took) == (2 if folder == sweep else 3)
        assert min(took) > 0
        assert sum(took[:-1]) < seconds <= sum(took)


@pytest.mark.long
def test_sweep_stops_a_trial_that_falls_behind_with_a_checkpoint(resumed):
    run = resumed["sweep"] / "trials" / "0003"
    (saved,) = checkpoint.all_in(run)[-1:]
    assert 20 <= int(saved.name.removeprefix("step_")) < 100
    assert not (run / "result.json").exists()


@pytest.mark.long
def test_sweep_in_mlflow_has_its_trials_nested_and_none_running(resumed):
    client, runs = logged(resumed["folder"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = {int(run.data.tags["trial"]): run for run in runs if run is not parent}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in trials.values())
    assert parent.info.status == "FINISHED"
    ended = ["FAILED", "FINISHED", "FINISHED", "KILLED"]
    assert [trials[number].info.status for number in range(4)] == ended
    assert [trials[number].data.tags["state"] for number in range(4)] == STATES
    assert [trials[number].data.tags["best"] for number in range(4)] == ["false", "false", "true", "false"]
    assert trials[2].data.params["optim.lr"] == "0.1"
    assert len(client.get_metric_history(trials[2].info.run_id, "train/loss")) == 100
    assert "plots/schedule.png" in {path.path for path in client.list_artifacts(trials[2].info.run_id, "plots")}
    assert len(client.get_metric_history(parent.info.run_id, "trial/loss")) == 2
    files = {path.path for path in client.list_artifacts(parent.info.run_id)}
    assert files >= {"sweep.yaml", "best.yaml", "report.html", "result.json", "plots"}
    plots = {path.path for path in client.list_artifacts(parent.info.run_id, "plots")}
    names = ("history", "importance", "parallel_coordinates", "heatmap_optim_lr_train_epochs")
    assert plots == {f"plots/{name}.png" for name in names}


def logged(folder: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])


@pytest.mark.long
def test_report_of_a_sweep_in_a_browser_is_drawn_without_errors(resumed, browser):
    page = browser(resumed["sweep"] / "report.html")
    assert page.console == []
    # History, importance, parallel coordinates, the heat map, curves: plotly.js adds the second class when it draws.
    assert page.dom.count("<figure") == page.dom.count('class="plotly-graph-div js-plotly-plot"') == 5


@pytest.fixture
def exact_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of two nodes whose CPUs the workers of two trials fill."""
    with light_nodes():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield
        cluster.shutdown()


@pytest.mark.usefixtures("exact_cluster")
@pytest.mark.long
def test_sweep_over_prune_shares_embeddings_and_reports_accuracy_against_time(drawn, tmp_path):
    faces = open_dataset([str(drawn)])
    vectors = np.random.default_rng(0).normal(size=(len(faces.index), 8)).astype(np.float32)
    embeddings = tmp_path / "embeddings"
    embeddings.mkdir()
    columns = {"key": faces.keys(), "label": faces.index.label.astype(np.int64), "embedding": list(vectors)}
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "embedding": pa.list_(pa.float32(), 8)})
    pq.write_table(pa.table(columns, schema=schema), embeddings / "part.parquet")
    storage = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    places = [f"data.train={drawn}", f"evaluate.pairs={drawn / 'pairs.csv'}", f"evaluate.data={drawn}"]
    given = [f"prune.embeddings={embeddings}", f"sweep.storage={storage}", "tracking.enabled=false"]
    result = result_of(command(PRUNING, tmp_path, *places, *given))
    assert (result["complete"], result["trials"]) == (2, 2)
    assert [path.name for path in embeddings.iterdir()] == ["part.parquet"]
    trials = trials_of(tmp_path / "sweep", storage)
    for trial in trials:
        run = tmp_path / "sweep" / "trials" / f"{trial.number:04d}"
        facts = json.loads((run.with_name(f"{run.name}_core_set") / "prune.json").read_text())
        assert facts["method"] == trial.params["prune.method"]
        found = json.loads((run / "result.json").read_text())
        assert trial.values == [found["accuracy_mean"], found["seconds"]]
        metrics = read_metrics(run / "journal")
        assert metrics["prune/faces_out"][0][1] == facts["faces_out"]
        assert len(metrics["train/loss"]) == facts["faces_out"] // 24
    best = tmp_path / "sweep" / "trials" / f"{result['best']['trial']:04d}_core_set"
    assert configs.load(file=tmp_path / "sweep" / "best.yaml").data.train == (str(best),)
