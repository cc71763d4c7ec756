"""The files of a run."""

import re
from pathlib import Path

import pytest

import rayface
from rayface import config as configs
from rayface.training.run_directory import RunDirectory

NAMES = (
    r"config\.yaml|data\.json|outcome\.json|faults\.log|restarts\.json|rollbacks\.json|rank0\.jsonl|checkpoints|beats|"
    r"hang|leave|\.preflight"
)


def test_files_of_a_run_are_named_by_no_other_module():
    root = Path(rayface.__file__).parent
    joined = re.compile(rf'(?:/ |= |\()f?"(?:{NAMES})"')
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if joined.search(path.read_text())}
    # models/run_files.py holds the names that RunDirectory shares with the rooms below training.
    assert found == {"models/run_files.py", "training/run_directory.py", "training/run_messages.py"}


def test_directory_of_a_finished_run_has_result_and_model(tmp_path):
    run = RunDirectory(tmp_path)
    assert not run.has_started()
    run.write_config(configs.with_overrides(configs.load("debug"), {"train.output": str(tmp_path)}))
    assert run.has_started()
    assert run.read_config().train.output is None  # it may be moved
    run.write_outcome({"steps": 3})
    assert run.has_outcome()
    run.write_result({"steps": 3})
    assert run.has_result()
    assert not run.is_finished()
    for path in (run.model, run.model.with_name("model.json")):
        path.touch()
    assert run.is_finished()
    assert run.read_result() == {"steps": 3}
    assert [path.name for path, _ in run.artifacts()] == ["model.safetensors", "model.json", "result.json"]
    run.delete_results()
    assert not (run.has_outcome())
    assert not (run.has_result())


def test_read_config_of_another_folder_raises_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run directory \(no config.yaml\): give the directory of a run$"):
        RunDirectory(tmp_path).read_config()


def test_faults_added_later_are_appended(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_faults(["a"])
    run.add_faults(["b", "c"])
    assert (tmp_path / "faults.log").read_text() == "a\nb\nc\n"


def test_metrics_as_a_data_frame_are_a_row_for_each_step_with_nan_where_none_was_measured(tmp_path):
    run = RunDirectory(tmp_path)
    journal = run.journal("rank0")
    journal.metrics({"train/loss": 3.0}, 10)
    journal.metrics({"train/loss": 2.0, "eval/accuracy": 0.7}, 20)
    journal.close()
    frame = run.to_pandas()
    assert frame.index.name == "step"
    assert frame["train/loss"].to_dict() == {10: 3.0, 20: 2.0}
    assert frame["eval/accuracy"].isna().tolist() == [True, False]
