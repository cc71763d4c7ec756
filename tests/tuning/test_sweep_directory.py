"""The directory of a sweep: which one a sweep gets, its trials, its name, its artifacts."""

import json

import pytest

from rayface.storage import DataError
from rayface.tuning.sweep_directory import SPEC, SweepDirectory, new_sweep, newest

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
    assert newest("try") == sweeps / "try-007"
    assert newest("missing") is None


def test_new_sweep_in_the_directory_of_another_sweep_or_in_a_file_raises_one_line(file, tmp_path):
    assert new_sweep(file, ["data.train=faces", "sweep.output=out"], None)[2] == tmp_path / "out"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SPEC).touch()
    for name in ("out", "try.yaml"):
        with pytest.raises(ValueError, match=r"^sweep\.output: .*: resume it with --resume") as caught:
            new_sweep(file, ["data.train=faces", f"sweep.output={name}"], None)
        assert "\n" not in str(caught.value)


def test_trials_have_numbered_run_directories_and_core_sets_beside_them(tmp_path):
    sweep = SweepDirectory(tmp_path / "try-001")
    assert sweep.run(7).path == tmp_path / "try-001" / "trials" / "0007"
    assert sweep.core_set(7) == tmp_path / "try-001" / "trials" / "0007_core_set"
    assert sweep.name == "try-001"


def test_exclusive_sweep_directory_is_refused_to_a_second_owner_until_the_first_leaves(tmp_path):
    sweep = SweepDirectory(tmp_path / "try-001")
    with sweep.exclusive():
        assert (sweep.path / "trials").is_dir()
        with pytest.raises(DataError, match=r"^sweep\.output: .*another process owns it"), sweep.exclusive():
            pass
    with sweep.exclusive():
        assert sweep.path.is_dir()


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
