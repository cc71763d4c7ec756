"""The directory of a sweep: which one a sweep gets, its trials, its name, its artifacts."""

import json
from pathlib import Path

import pytest

from rayface.storage import DataError, RemotePath, lease
from rayface.training.run_directory import RunDirectory
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec
from rayface.tuning.study import open_study
from rayface.tuning.sweep_directory import SPEC, SweepDirectory, new_sweep, newest
from tests.tuning.search_desk import Desk

TEXT = "search: {optim.lr: [0.1]}\nobjectives: [{metric: loss, mode: min}]\n"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A sweep file in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "try.yaml").write_text(TEXT)
    return tmp_path / "try.yaml"


def test_new_sweep_without_an_output_gets_the_next_number(file, tmp_path):
    sweeps = tmp_path / "sweeps"
    assert new_sweep(file, ["data.train=faces"], None)[2] == sweeps / "try-001"
    for name in ("try-001", "try-007", "other-009"):
        (sweeps / name).mkdir(parents=True)
    assert new_sweep(file, ["data.train=faces"], None)[2] == sweeps / "try-008"
    assert newest("try") is None
    (sweeps / "try-001" / SPEC).touch()
    assert newest("try") == sweeps / "try-001"
    assert newest("missing") is None


def test_new_sweep_takes_the_number_of_one_that_was_killed_before_it_began(file, tmp_path):
    left = SweepDirectory(tmp_path / "sweeps" / "try-003")
    with left.exclusive():
        assert new_sweep(file, ["data.train=faces"], None)[2].name == "try-004"
    assert new_sweep(file, ["data.train=faces"], None)[2].name == "try-003"
    left.run(0).path.mkdir()
    assert new_sweep(file, ["data.train=faces"], None)[2].name == "try-004"
    left.run(0).path.rmdir()
    left.spec.touch()
    assert new_sweep(file, ["data.train=faces"], None)[2].name == "try-004"


def test_new_sweep_in_the_directory_of_another_sweep_or_in_a_file_raises_one_line(file, tmp_path):
    assert new_sweep(file, ["data.train=faces", "sweep.output=out"], None)[2] == tmp_path / "out"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SPEC).touch()
    for name, words in (("out", "resume it with --resume"), ("try.yaml", "is a file: choose another directory")):
        with pytest.raises(ValueError, match=rf"^sweep\.output: .*: .*{words}") as caught:
            new_sweep(file, ["data.train=faces", f"sweep.output={name}"], None)
        assert "\n" not in str(caught.value)


def test_trials_have_numbered_run_directories_and_core_sets_beside_them(tmp_path):
    sweep = SweepDirectory(tmp_path / "try-001")
    assert sweep.run(7).path == tmp_path / "try-001" / "trials" / "0007"
    assert sweep.core_set(7) == tmp_path / "try-001" / "trials" / "0007_core_set"
    assert sweep.name == "try-001"


@pytest.mark.parametrize("name", ["a b#1", "a%20b", "a?b", "100%"])
def test_study_of_a_directory_of_any_name_is_in_it(tmp_path, name):
    sweep = SweepDirectory(tmp_path / name)
    sweep.path.mkdir()
    open_study(Spec(search={"optim.lr": Parameter(choices=[0.1])}), "test", sweep.storage, total_steps=1)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")] == [Path(name) / "study.db"]


def test_exclusive_sweep_directory_is_refused_to_a_second_owner_until_the_first_leaves(tmp_path):
    sweep = SweepDirectory(tmp_path / "try-001")
    with sweep.exclusive():
        assert (sweep.path / "trials").is_dir()
        with pytest.raises(DataError, match=r"^sweep\.output: .*another process owns it"), sweep.exclusive():
            pass
    with sweep.exclusive():
        assert sweep.path.is_dir()


def test_exclusive_directory_is_freed_of_files_that_a_killed_driver_left_unfinished(tmp_path):
    sweep = SweepDirectory(tmp_path)
    trial = sweep.run(0)
    left = [folder / ".result.json.0123abcd.tmp" for folder in (sweep.path, sweep.plots, trial.path, trial.journals)]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with sweep.exclusive():
        assert [path.exists() for path in left] == [False, False, True, True]
    with trial.exclusive():
        assert not any(path.exists() for path in left)


def test_study_name_on_resume_is_that_of_the_start_and_no_other_sweeps(tmp_path):
    names = []
    for parent in ("a", "b"):
        sweep = SweepDirectory(tmp_path / parent / "try-001")
        sweep.path.mkdir(parents=True)
        names.append(sweep.study_name(resume=False))
        assert sweep.study_name(resume=True) == names[-1]
    moved = (tmp_path / "a" / "try-001").rename(tmp_path / "moved")
    assert SweepDirectory(moved).study_name(resume=True) == names[0]
    assert names[0] != names[1]
    assert all(name.startswith("try-001-") for name in names)


def test_artifacts_of_an_ended_sweep_are_those_that_were_written(tmp_path):
    sweep = SweepDirectory(tmp_path)
    assert sweep.artifacts() == []
    sweep.write_results({"trials": 1}, "<html></html>")
    sweep.plots.mkdir()
    (sweep.plots / "history.png").touch()
    found = [(path.name, folder) for path, folder in sweep.artifacts()]
    assert found == [("report.html", ""), ("result.json", ""), ("history.png", "plots")]
    assert json.loads((tmp_path / "result.json").read_text()) == {"trials": 1}
    assert sweep.report.read_text() == "<html></html>"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that puts the user's folders on the empty disk of another machine."""
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 2.0)  # of a machine under load

    def machine(name):
        for variable in ("XDG_STATE_HOME", "RAYFACE_CACHE"):
            monkeypatch.setenv(variable, str(tmp_path / name / variable))
        return tmp_path / name

    machine("one")
    return machine


@pytest.mark.long
def test_sweep_in_a_store_resumes_from_the_empty_disk_of_another_machine(object_store, machine):
    sweep = SweepDirectory(RemotePath(object_store.uri("sweeps/try")))
    with sweep.exclusive(), sweep.delivering(resume=False):
        desk = Desk(sweep.working, path=sweep.path, trials=3)
        jobs = [desk.start(name) for name in "ab"]
        desk.complete("a", 0.5)
        sweep.plots.mkdir()
        (sweep.plots / "history.png").write_bytes(b"png")
    assert not sweep.working.exists()
    assert {"sweeps/try/study.db", "sweeps/try/plots/history.png"} <= set(object_store.files())
    machine("two")
    with sweep.exclusive(), sweep.delivering(resume=True):
        assert (sweep.plots / "history.png").read_bytes() == b"png"
        again = Desk(sweep.working, path=sweep.path, trials=3)
        assert again.states() == ["COMPLETE", "RUNNING"]
        assert again.start("b") == jobs[1]
        again.complete("b", 0.4)
        assert again.start("c")["trial"] == 2
    assert not any(object_store.secret.encode() in content for content in object_store.files().values())
    machine("three")
    with sweep.delivering(resume=True):
        study = open_study(desk.spec, "test", sweep.storage, total_steps=1, resume=True)
        assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    with sweep.delivering(resume=False):  # the sweep was deleted, and another one takes its place
        assert not list(sweep.working.glob("study.db"))


def test_sweep_in_a_store_is_refused_to_a_second_driver_in_one_line_by_the_lease(object_store, machine):
    sweep = SweepDirectory(RemotePath(object_store.uri("sweeps/try")))
    owned = pytest.raises(DataError, match=r"^sweep\.output: s3://\S+: process \d+ on \S+ owns it, .* stop it first$")
    with sweep.exclusive(), owned as refused, sweep.exclusive():
        pass
    assert "\n" not in str(refused.value)
    assert object_store.secret not in str(refused.value)


@pytest.mark.long
def test_stop_of_a_sweep_in_a_store_leaves_nothing_where_a_trial_has_not_started(object_store, machine):
    sweep = SweepDirectory(RemotePath(object_store.uri("sweeps/try")))
    with sweep.delivering(resume=False):
        desk = Desk(sweep.working, path=sweep.path, trials=3)
        desk.start("a")
        desk.search.stop()
        assert RunDirectory(sweep.run(0).path).is_unused()
