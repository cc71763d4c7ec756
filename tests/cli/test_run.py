"""The verb of experiments: what is handed over, and a row for each stage."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from rayface.cli.run import _in_short
from tests.cli.conftest import Call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def run(file: object, overrides: list[str], **options: Any) -> SimpleNamespace:
        found.append({"file": str(file), "overrides": overrides, **options})
        stages = [
            SimpleNamespace(name="drawn", verb="synth", skipped=True, seconds=1, result={"images": 12000}),
            SimpleNamespace(name="scores", verb="evaluate", skipped=False, seconds=1234, result={}),
        ]
        return SimpleNamespace(experiment="four", output="/o", stages=stages, as_dict=lambda: {"experiment": "four"})

    monkeypatch.setattr("rayface.experiment.runner.run", run)
    return found


def test_run_of_a_file_hands_over_keys_folder_and_cluster(call: Call, asked: list[dict[str, Any]]) -> None:
    code, out, _ = call("run", "four.yaml", "train.epochs=3", "--out=/o", "--address=c:1", "--json")
    assert (code, json.loads(out)) == (0, {"experiment": "four"})
    (given,) = asked
    assert (given["file"], given["overrides"], given["out"]) == ("four.yaml", ["train.epochs=3"], "/o")
    assert given["cluster"].address == "c:1"


def test_run_as_a_table_has_a_row_for_each_stage(call: Call, asked: list[dict[str, Any]]) -> None:
    code, out, _ = call("run", "four.yaml")
    assert code == 0
    drawn, scores = (next(line for line in out.splitlines() if name in line) for name in ("drawn", "scores"))
    assert "skipped" in drawn
    assert "images 12,000" in drawn
    assert "1,234 s" in scores
    assert "experiment four, a folder for each stage in /o" in out
    assert out.splitlines()[1].split() == ["stage", "verb", "time", "result"]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"accuracy_mean": 0.98765, "images": 3}, "accuracy 98.77%"),
        ({"faces_out": 1200, "images": 3000}, "images kept 1,200"),
        ({"num_rows": 1440}, "images embedded 1,440"),
        ({"max_abs_error": 4.8e-07}, "differs from PyTorch by 4.8e-07"),
        ({"loss": None, "images": 7}, "images 7"),
        ({"tar_at_far": {"1e-03": 0.5, "1e-04": 0.25, "1e-05": 0.1}}, "TAR 25.00% at FAR 1e-04"),
        ({"tar_at_far": {"1e-01": 0.5, "1e-02": 0.25, "1e-03": None}}, "TAR 25.00% at FAR 1e-02"),
        ({"tar_at_far": {"1e-03": None}}, ""),
        ({"other": 1}, ""),
    ],
)
def test_in_short_names_the_first_known_number_of_a_result(result: dict[str, Any], text: str) -> None:
    assert _in_short(result) == text


def test_run_of_a_missing_file_is_one_line_and_exit_code_2(call: Call) -> None:
    code, out, err = call("run", "/nowhere.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("/nowhere.yaml: cannot be read")
