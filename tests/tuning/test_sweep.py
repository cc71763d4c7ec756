"""What the driver of a sweep refuses before a trial starts, without Ray."""

from dataclasses import replace

import pytest
import ray

from rayface import config as configs
from rayface.tracking import shared_tracking
from rayface.tuning import sweep
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec, SweepConfig
from rayface.tuning.sweep_directory import SPEC


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"CPU": 4.0, "GPU": 4.0}, None),
        ({"CPU": 3.0, "GPU": 4.0}, "sweep.concurrency: 2: a trial needs 2 CPU, the cluster has room for 1: lower it"),
        ({"CPU": 8.0, "GPU": 2.0}, "sweep.concurrency: 2: a trial needs 2 GPU, the cluster has room for 1: lower it"),
        ({"CPU": 5.0}, None),
    ],
)
def test_trials_at_once_must_fit_into_the_cluster(monkeypatch, cluster, message):
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    spec = Spec(search={"optim.lr": Parameter(choices=(0.1,))}, sweep=SweepConfig(concurrency=2))
    base = configs.load(overrides=["train.num_workers=2"])
    if message is None:
        sweep._check_room(spec, base)
        wide = replace(spec, search={"train.num_workers": Parameter(low=1, high=3)})
        with pytest.raises(ValueError, match="a trial needs 3 CPU"):
            sweep._check_room(wide, sweep._most_workers(wide, base))
        return
    with pytest.raises(ValueError, match=message):
        sweep._check_room(spec, base)


def test_a_sweep_and_its_trials_log_to_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here, folder = f"sqlite:///{tmp_path}", tmp_path / "sweeps" / "try-001"
    base = configs.load()
    assert shared_tracking(base.tracking, folder).uri == f"{here}/sweeps/mlflow.db"
    # Relative to where the sweep was started: trials run in other directories.
    given = configs.with_overrides(base, {"tracking.uri": "sqlite:///log/my.db"})
    assert shared_tracking(given.tracking, folder).uri == f"{here}/log/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert shared_tracking(base.tracking, folder).uri == f"{here}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server")
    assert shared_tracking(base.tracking, folder).uri is None  # left to the environment, and not written down


def test_a_sweep_that_is_there_or_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "try.yaml"
    file.write_text("search: {optim.lr: [0.1]}\nobjectives: [{metric: loss, mode: min}]\n")
    with pytest.raises(ValueError, match=r"--resume: sweeps/try-\*: no sweep there: name it with sweep.output=DIR"):
        sweep.tune(file, resume=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SPEC).touch()
    with pytest.raises(ValueError, match=r"sweep\.output: .*: holds a sweep: go on with --resume"):
        sweep.tune(file, ["data.train=faces", "sweep.output=out"])
    with pytest.raises(ValueError, match=r"data\.train: is not set"):
        sweep.tune(file)
    with pytest.raises(ValueError, match=r"optim\.lr: must stay for --resume"):
        sweep.tune(file, ["optim.lr=1"], resume=True)
