"""What is printed and written of outcomes."""

import json
from pathlib import Path

import pytest

from rayface.bench.gpu.case import Outcome, Part
from rayface.bench.gpu.machine import Machine
from rayface.bench.gpu.report import Report

PART = Part(key="x", title="some figures", module="", weight=1)
MACHINE = Machine(gpu="", clocks="", cpu="any", cores=2, python="3.12", packages="torch 2.11")


def report_of(folder: Path, outcomes: list[Outcome]) -> Report:
    report = Report(folder, {"minutes": 8.0}, MACHINE)
    report.begin(PART, 60)
    for outcome in outcomes:
        report.add(outcome)
    report.end()
    return report


def test_tables_have_one_for_each_kind_of_figures_and_long_texts_as_notes(tmp_path: Path) -> None:
    sites = "margin_loss.py:113 x1, partial_fc.py:206 x1"
    report_of(
        tmp_path,
        [
            Outcome(case="step", status="passed", figures={"step_ms": 12.345, "rows": 2059906, "sync_sites": sites}),
            Outcome(case="error", status="failed", figures={"loss": 1.5e-7}, note="too large"),
            Outcome(case="late", status="cut", note="no time"),
        ],
    )
    lines = (tmp_path / "tables.txt").read_text().splitlines()
    assert sum("x: some figures" in line for line in lines) == 3
    (step,) = [line for line in lines if line.startswith("step ")]
    assert step.split("  ")[-1].strip() == f"sync sites: {sites}"
    assert "12.3" in step
    assert "2,059,906" in step
    assert any("1.5e-07" in line and "too large" in line for line in lines)


def test_results_after_each_case_hold_what_was_found_so_far(tmp_path: Path) -> None:
    report = Report(tmp_path, {"minutes": 8.0}, MACHINE)
    report.begin(PART, 60)
    report.add(Outcome(case="one", status="passed", figures={"answer": 42, "none": None}))
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["machine"]["cores"] == 2
    assert found["arguments"] == {"minutes": 8.0}
    assert found["parts"]["x"]["cases"][0]["figures"] == {"answer": 42, "none": None}


@pytest.mark.parametrize(
    ("status", "passed"),
    [("passed", True), ("cut", True), ("out of memory", True), ("failed", False), ("error", False)],
)
def test_all_passed_is_false_for_what_must_be_looked_at(tmp_path: Path, status: str, passed: bool) -> None:
    assert report_of(tmp_path, [Outcome(case="one", status=status)]).all_passed is passed
