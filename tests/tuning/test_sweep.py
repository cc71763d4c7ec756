"""What the driver of a sweep refuses before a trial starts, without Ray."""

import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from ray.tune.execution import class_cache

from rayface import config as configs
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.tracking import Journal, shared_tracking
from rayface.tracking.journal import read_records
from rayface.training.run_output import DataFacts
from rayface.tuning import spec as specs
from rayface.tuning import sweep, trials
from rayface.tuning.ray_tune_settings import keep_credentials
from rayface.tuning.results import SweepResult
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec, SweepConfig
from rayface.tuning.study import open_study
from rayface.tuning.sweep_directory import SPEC, SweepDirectory
from rayface.tuning.trials import Trials


def test_trial_actor_requires_memory_and_no_cpu():
    assert trials._TRIAL.required_resources == {"memory": 1}


def test_keep_credentials_leaves_none_to_the_runtime_environment_of_trials(monkeypatch):
    """Ray writes runtime environments into its logs."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pl4nted")
    keep_credentials()
    sent = class_cache._ActorClassCache().get(type("Trainable", (), {}))._default_options["runtime_env"]
    assert "pl4nted" not in str(sent)
    assert "PL_DISABLE_FORK" in str(sent)


@pytest.mark.parametrize(("trials", "sampler", "number"), [(16, "grid", 2), (1, "grid", 1), (16, "random", 16)])
def test_number_of_trials_is_that_of_the_grid_if_it_has_fewer_points(trials, sampler, number):
    settings = SweepConfig(trials=trials, sampler=sampler)
    assert Spec(search={"optim.lr": Parameter(choices=[0.1, 0.2])}, sweep=settings).num_trials == number


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A sweep of drawn endings in place of trials; returns its one line, without Ray."""
    monkeypatch.setattr(trials, "write_results", lambda spec, base, folder, study, seconds: counts(study))

    def counts(study):
        states = [trial.state.name for trial in study.get_trials()]
        return SweepResult(
            sweep=str(tmp_path),
            report="",
            trials=len(states) - states.count("RUNNING"),
            complete=states.count("COMPLETE"),
            pruned=0,
            fail=states.count("FAIL"),
            seconds=1.0,
            best=None,
        )

    def run(*endings, trials=4):
        spec = Spec(search={"optim.lr": Parameter(low=0.1, high=0.2)}, sweep=SweepConfig(trials=trials))
        base = configs.load(overrides=["tracking.enabled=false"])
        study = open_study(spec, "test", f"sqlite:///{tmp_path / 'study.db'}", total_steps=1)
        swept = Trials(spec, base, SweepDirectory(tmp_path), study, Journal(tmp_path / "driver.jsonl"))
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
            "all 1 trials failed: trial 0: OSError: no such file: fix it, then resume with: rayface tune .*resume$",
        ),
        (
            [DISK] * 3,
            "all 3 trials failed for the same reason, no further ones were started: trial 0: OSError: no such file",
        ),
        (
            [{**DISK, "reason": word} for word in "abcd"],
            "all 4 trials failed: trial 0: a: fix it, then start a new sweep",
        ),
        ([DONE, {"state": "LOST", "reason": "no room"}], r"^trial 1: no room; resume with: rayface tune .*--resume$"),
    ],
)
def test_finish_of_a_sweep_without_a_result_raises_the_first_reason(ended, endings, message):
    with pytest.raises(RuntimeError, match=message):
        ended(*endings)


def test_finish_of_a_sweep_with_a_result_returns_it(ended):
    assert ended(DISK, DONE).fail == 1


def test_finish_of_a_resumed_sweep_whose_first_trials_fail_alike_raises_beside_earlier_results(ended):
    ended(DONE, trials=9)
    with pytest.raises(
        RuntimeError,
        match="the first trials failed for the same reason, no further ones were started: OSError: no such file",
    ):
        ended(DISK, DISK, DISK, trials=9)


def test_shared_tracking_of_a_sweep_and_its_trials_is_one_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here, folder = f"sqlite:///{tmp_path}", tmp_path / "sweeps" / "try-001"
    base = configs.load()
    assert shared_tracking(base.tracking, folder).uri == f"{here}/mlflow.db"
    # Relative to where the sweep was started: trials run in other directories.
    given = configs.with_overrides(base, {"tracking.uri": "sqlite:///log/my.db"})
    assert shared_tracking(given.tracking, folder).uri == f"{here}/log/my.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert shared_tracking(base.tracking, folder).uri == f"{here}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server")
    assert shared_tracking(base.tracking, folder).uri is None  # left to the environment, and not written down


def test_tune_with_a_searched_dataset_that_is_missing_raises_before_a_trial_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize("a", identities=2, images_per_identity=4, processes=1, image_size=32)
    file = tmp_path / "try.yaml"
    file.write_text("search: {data.train: [a, 'b #2']}\nobjectives: [{metric: loss, mode: min}]\n")
    with pytest.raises(ValueError, match=rf"^data\.train: {tmp_path}/b #2: no such dataset folder"):
        sweep.tune(file, ["train.batch_size=4"])
    assert not (tmp_path / "sweeps").exists()


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A sweep that Ctrl-C ends after its trials, without Ray; returns the address and debug of its session."""
    monkeypatch.chdir(tmp_path)
    synthesize("a", identities=2, images_per_identity=4, processes=1, image_size=32)
    file = tmp_path / "try.yaml"
    file.write_text("search: {optim.lr: [0.1]}\nobjectives: [{metric: loss, mode: min}]\n")
    sessions = []

    def session(address, *, num_cpus, debug, prometheus):
        sessions.append((address, debug))
        return contextlib.nullcontext()

    def finish(*args):
        raise KeyboardInterrupt

    for name, function in (("ray_session", session), ("check_room", print), ("wait_for_nodes", print)):
        monkeypatch.setattr(sweep, name, function)
    monkeypatch.setattr(Trials, "run", lambda *args: None)
    monkeypatch.setattr(Trials, "finish", finish)

    def tune(*overrides, **options):
        keys = ["data.train=a", "train.batch_size=4", "tracking.enabled=false", "sweep.output=out", *overrides]
        with pytest.raises(KeyboardInterrupt):
            sweep.tune(file, keys, **options)
        return sessions[-1]

    tune.sessions, tune.finish = sessions, finish
    return tune


def test_tune_connects_to_the_cluster_of_its_options_else_of_its_config(interrupted):
    assert interrupted("cluster.address=c:1", "cluster.debug=true") == ("c:1", True)
    assert interrupted("cluster.address=d:1", resume=True) == ("d:1", False)
    assert interrupted("cluster.address=d:1", resume=True, address="e:1") == ("e:1", False)
    assert interrupted(resume=True) == (None, False)


def test_tune_with_a_mapping_and_a_text_or_uri_as_file_starts_the_same_sweep(interrupted, tmp_path, object_store):
    object_store.put("try.yaml", (tmp_path / "try.yaml").read_bytes())
    interrupted("optim.momentum=0.8", "sweep.trials=3")
    keys = {"data.train": Path("a"), "train.batch_size": 4, "tracking.enabled": False, "optim.momentum": 0.8}
    for number, file in enumerate([str(tmp_path / "try.yaml"), object_store.uri("try.yaml")]):
        with pytest.raises(KeyboardInterrupt):
            sweep.tune(file, {**keys, "sweep.trials": 3, "sweep.output": tmp_path / f"{number}"})
        assert (tmp_path / f"{number}" / SPEC).read_text().replace(f"/{number}\n", "/out\n") == (
            tmp_path / "out" / SPEC
        ).read_text()


def test_tune_interrupted_outside_its_trials_ends_as_killed(interrupted, tmp_path):
    interrupted()
    records = [record for record, _ in read_records(next((tmp_path / "out").rglob("driver.jsonl")), 0)]
    assert (records[-1]["kind"], records[-1]["status"]) == ("finish", "KILLED")


KEYS = ["data.train=a", "train.batch_size=4", "tracking.enabled=false"]


def test_tune_killed_before_sweep_yaml_is_written_leaves_number_and_study_to_the_next(
    interrupted, tmp_path, monkeypatch
):
    storage = f"sqlite:///{tmp_path / 'all.db'}"
    monkeypatch.setenv("OPTUNA_STORAGE", storage)
    file, dump = tmp_path / "try.yaml", specs.dump
    file.write_text(file.read_text() + "sweep: {sampler: grid}\n")
    monkeypatch.setattr(specs, "dump", lambda *args: interrupted.finish())
    with pytest.raises(KeyboardInterrupt):
        sweep.tune(file, KEYS)
    monkeypatch.setattr(specs, "dump", dump)
    file.write_text(file.read_text().replace("[0.1]", "[0.2, 0.3]"))
    with pytest.raises(ValueError, match="no sweep to resume there"):
        sweep.tune(file, KEYS, resume=True)
    with pytest.raises(KeyboardInterrupt):
        sweep.tune(file, KEYS, resume="auto")
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == ["try-001"]
    (name,) = optuna.get_all_study_names(storage)
    points = [
        trial.system_attrs["fixed_params"] for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    assert points == [{"optim.lr": 0.2}, {"optim.lr": 0.3}]


def test_tune_of_a_resumed_sweep_refuses_other_data_than_that_of_its_first_trial(interrupted, tmp_path):
    interrupted()
    facts = DataFacts.of(open_dataset("a"))
    first = SweepDirectory(tmp_path / "out").run(0)
    first.path.mkdir(parents=True)
    first.write_data_facts(asdict(facts))
    interrupted(resume=True)
    shutil.rmtree("a")
    synthesize("a", identities=2, images_per_identity=4, processes=1, image_size=32, seed=1)
    before = len(interrupted.sessions)
    with pytest.raises(ValueError, match=r"^data\.train: digest is \w+, the run was started with \w+: must not change"):
        sweep.tune(tmp_path / "try.yaml", [*KEYS, "sweep.output=out"], resume=True)
    assert len(interrupted.sessions) == before


def test_tune_of_a_finished_sweep_writes_its_results_without_ray(interrupted, tmp_path, monkeypatch):
    def results(self, seconds, tags):
        return SweepResult(
            sweep="", report="", trials=len(self._study.trials), complete=0, pruned=0, fail=0, seconds=1, best=None
        )

    interrupted("sweep.trials=1", "sweep.sampler=random")
    (name,) = optuna.get_all_study_names(storage := SweepDirectory(tmp_path / "out").storage)
    study = optuna.load_study(study_name=name, storage=storage)
    study.tell(study.ask(), 0.5)
    monkeypatch.setattr(Trials, "finish", results)
    before = len(interrupted.sessions)
    keys = [*KEYS, "sweep.output=out", "sweep.sampler=random"]
    assert sweep.tune(tmp_path / "try.yaml", [*keys, "sweep.trials=1"], resume="auto").trials == 1
    assert len(interrupted.sessions) == before
    assert sweep.tune(tmp_path / "try.yaml", [*keys, "sweep.trials=2"], resume="auto").trials == 1
    assert len(interrupted.sessions) == before + 1


def test_tune_of_a_sweep_that_is_missing_or_exists_raises_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "try.yaml"
    file.write_text("search: {optim.lr: [0.1]}\nobjectives: [{metric: loss, mode: min}]\n")
    with pytest.raises(
        ValueError, match=r"sweep\.output: sweeps/try-\*: no sweep to resume there: name it with sweep.output=DIR"
    ):
        sweep.tune(file, resume=True)
    with pytest.raises(ValueError, match=r"sweep\.output: .*out: no sweep to resume there: start it without --resume$"):
        sweep.tune(file, ["sweep.output=out"], resume=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SPEC).touch()
    with pytest.raises(ValueError, match=r"sweep\.output: .*: holds a sweep: resume it with --resume"):
        sweep.tune(file, ["data.train=faces", "sweep.output=out"])
    with (
        SweepDirectory(tmp_path / "out").exclusive(),
        pytest.raises(ValueError, match=r"sweep\.output: .*: another process runs a sweep there: choose another"),
    ):
        sweep.tune(file, ["data.train=faces", "sweep.output=out"])
    (tmp_path / "out" / SPEC).rename(tmp_path / "sweep.yaml")
    (tmp_path / "out" / "trials" / "0000").mkdir()
    with pytest.raises(ValueError, match=r"sweep\.output: .*: holds trials without their sweep.yaml: choose another"):
        sweep.tune(file, ["data.train=faces", "sweep.output=out"])
    (tmp_path / "sweep.yaml").rename(tmp_path / "out" / SPEC)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"sweep\.output: .*file: is a file: choose another directory"):
        sweep.tune(file, ["data.train=faces", "sweep.output=file"])
    with pytest.raises(ValueError, match=r"data\.train: is not set"):
        sweep.tune(file)
    with pytest.raises(ValueError, match=r"optim\.lr: must not change on a resume"):
        sweep.tune(file, ["optim.lr=1", "sweep.output=out"], resume=True)
