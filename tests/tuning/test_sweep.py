"""What the driver of a sweep refuses before a trial starts, without Ray."""

import pytest
import ray

from rayface import config as configs
from rayface.data.synth import synthesize
from rayface.tracking import Journal, shared_tracking
from rayface.tuning import resources, sweep
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec, SweepConfig
from rayface.tuning.study import open_study
from rayface.tuning.sweep_directory import SPEC, SweepDirectory


def node(**resources):
    return {"Alive": True, "Resources": {"memory": 1e9, **{name: float(count) for name, count in resources.items()}}}


@pytest.mark.parametrize(
    ("nodes", "keys", "message"),
    [
        ([node(CPU=4)], [], None),  # to the last CPU
        ([node(CPU=2), node(CPU=2)], [], None),
        ([node(CPU=3)], [], "2: its trials have 4 workers of 1 CPU each, the cluster has room for 3: lower it"),
        ([node(CPU=3.99)], [], "the cluster has room for 3: lower it"),
        ([node(CPU=3), node(CPU=3), node(CPU=3)], ["train.cpus_per_worker=2"], "4 workers of 2 CPU each, .* for 3"),
        ([node(CPU=4, GPU=2), node(CPU=4, GPU=2)], [], None),
        ([node(CPU=16, GPU=3)], [], "4 workers of 1 CPU and 1 GPU each, the cluster has room for 3"),
        ([node(CPU=2, GPU=4), node(CPU=8)], [], "4 workers of 1 CPU and 1 GPU each, the cluster has room for 2"),
        ([node(CPU=2, GPU=4), node(CPU=8)], ["train.device=cpu"], None),
    ],
)
def test_trials_at_once_must_fit_into_the_nodes_of_the_cluster(monkeypatch, nodes, keys, message):
    total = {name: sum(n["Resources"].get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    spec = Spec(search={"optim.lr": Parameter(choices=(0.1,))}, sweep=SweepConfig(concurrency=2))
    base = configs.load(overrides=["train.num_workers=2", *keys])
    if message is None:
        resources.check_room(spec, base)
        return
    with pytest.raises(ValueError, match=message):
        resources.check_room(spec, base)


def test_trials_are_counted_with_the_most_workers_that_are_searched():
    base = configs.load(overrides=["train.num_workers=8"])
    wide = Spec(search={"train.num_workers": Parameter(choices=(1, "[1, 3]", 2))})
    assert resources.most_workers(wide, base).train.max_workers == 3
    both = {"train.num_workers": Parameter(low=1, high=3), "train.cpus_per_worker": Parameter(choices=(4, 2))}
    most = resources.most_workers(Spec(search=both), base).train
    assert (most.max_workers, most.cpus_per_worker) == (3, 4)


def test_trial_itself_takes_no_cpu():
    assert sweep._TRIAL.required_resources == {"memory": 1}


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A sweep of drawn endings in place of trials; returns its one line, without Ray."""
    monkeypatch.setattr(sweep, "write_results", lambda spec, base, folder, study, seconds: counts(study))

    def counts(study):
        states = [trial.state.name for trial in study.get_trials()]
        return {"fail": states.count("FAIL"), "trials": len(states) - states.count("RUNNING")}

    def run(*endings, trials=4):
        spec = Spec(search={"optim.lr": Parameter(low=0.1, high=0.2)}, sweep=SweepConfig(trials=trials))
        base = configs.load(overrides=["tracking.enabled=false"])
        study = open_study(spec, "test", f"sqlite:///{tmp_path / 'study.db'}", total_steps=1)
        swept = sweep._Sweep(spec, base, SweepDirectory(tmp_path), study, Journal(tmp_path / "driver.jsonl"))
        for name, ending in enumerate(endings):
            swept._search.suggest(str(name))
            swept._search.on_trial_complete(str(name), ending)
        return swept.finish(1.0, {})

    return run


DISK = {"state": "FAIL", "reason": "OSError: no such file"}
DONE = {"state": "COMPLETE", "values": [0.5], "seconds": 1.0}


@pytest.mark.parametrize(
    ("endings", "message"),
    [
        (
            [DISK],
            "all 1 trials failed: trial 0: OSError: no such file: mend it, then go on with: rayface tune .*resume$",
        ),
        ([DISK] * 3, "all 3 trials failed, alike, and no more were started: trial 0: OSError: no such file: mend it"),
        (
            [{**DISK, "reason": word} for word in "abcd"],
            "all 4 trials failed: trial 0: a: mend it, then start a new sweep",
        ),
        ([DONE, {"state": "LOST", "reason": "no room"}], r"^trial 1: no room; go on with: rayface tune .*--resume$"),
    ],
)
def test_sweep_without_a_result_fails_with_the_first_reason(ended, endings, message):
    with pytest.raises(RuntimeError, match=message):
        ended(*endings)


def test_sweep_with_a_result_does_not_fail(ended):
    assert ended(DISK, DONE)["fail"] == 1


def test_resumed_sweep_whose_first_trials_fail_alike_fails_beside_earlier_results(ended):
    ended(DONE, trials=9)
    with pytest.raises(
        RuntimeError, match="the first trials failed, alike, and no more were started: OSError: no such file"
    ):
        ended(DISK, DISK, DISK, trials=9)


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


def test_searched_dataset_that_is_not_there_is_refused_before_a_trial_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize("a", identities=2, images_per_identity=4, processes=1, image_size=32)
    file = tmp_path / "try.yaml"
    file.write_text("search: {data.train: [a, 'b #2']}\nobjectives: [{metric: loss, mode: min}]\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/b #2: no such dataset folder"):
        sweep.tune(file, ["train.batch_size=4"])
    assert not (tmp_path / "sweeps").exists()


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
