"""Faults of a case end it alone, and the time is kept."""

import json
import time
from pathlib import Path

import pytest

from rayface.bench.gpu.budget import Budget
from rayface.bench.gpu.case import Kit, Outcome, Part
from rayface.bench.gpu.machine import describe
from rayface.bench.gpu.report import Report
from rayface.bench.gpu.runner import Worker, _outcomes, run_parts
from rayface.bench.gpu.worker import Message, Request
from tests.bench.gpu.faulty_part import PART

KIT = Kit(device="cpu", mini=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], Report, Path]:
    """All faults once: the cases by name as the JSON has them, the report and its folder."""
    folder = tmp_path_factory.mktemp("faults")
    report = Report(folder, {}, describe())
    run_parts([PART], KIT, 60, report)
    found = json.loads((folder / "results.json").read_text())["parts"]["x"]["cases"]
    return {case["case"]: case for case in found}, report, folder


def test_run_parts_when_a_case_fails_records_it_and_goes_on(run) -> None:
    cases, _, _ = run
    assert {name: case["status"] for name, case in cases.items()} == {
        "good": "passed",
        "not passed": "failed",
        "raises": "error",
        "no memory": "out of memory",
        "crash": "crashed",
        "after the crash": "passed",
        "hang": "cut",
        "after the hang": "passed",
        "cases of part x": "error",
    }
    assert cases["good"]["figures"] == {"answer": 42}
    assert cases["raises"]["note"].startswith("ValueError: first line second line")
    assert "exit code 7" in cases["crash"]["note"]
    assert cases["hang"]["note"].startswith("stopped after")


def test_report_after_faults_names_them_and_does_not_pass(run, capsys: pytest.CaptureFixture[str]) -> None:
    _, report, folder = run
    report.summary()
    printed = capsys.readouterr().out
    assert not report.all_passed
    assert "crashed: crash: its process ended with exit code 7" in printed
    table = (folder / "tables.txt").read_text()
    assert "off by one" in table
    assert "answer" in table


def test_run_parts_without_time_cuts_every_case_and_says_so(tmp_path: Path) -> None:
    report = Report(tmp_path, {}, describe())
    run_parts([PART], Kit(device="cpu", mini=True, contains="good"), 0, report)
    (outcome, _) = report.record.parts["x"].cases
    assert (outcome.case, outcome.status) == ("good", "cut")
    assert "0 s of the part's time were left" in outcome.note


def test_budget_when_a_part_ends_early_gives_its_rest_to_the_others() -> None:
    now = [100.0]
    parts = [Part(key=key, title=key, module="", weight=weight) for key, weight in (("a", 1), ("b", 2), ("c", 1))]
    budget = Budget(400, parts, clock=lambda: now[0])
    assert budget.deadline(parts[0]) == 200
    now[0] = 140.0
    assert budget.deadline(parts[1]) == 140 + 360 * 2 / 3
    now[0] = 600.0
    assert budget.deadline(parts[2]) == 600


def test_outcomes_when_no_process_gets_past_its_first_case_gives_the_part_up() -> None:
    """As with a driver that does not answer."""
    asked = []

    class Dying(Worker):
        def ask(self, request: Request) -> None:
            asked.append(request)

        def answer(self, until: float) -> Message:
            if len(asked) == 2:
                asked.append(None)
                return Outcome(case="one", status="error")
            raise EOFError

        def stop(self) -> int:
            return 1

    found = list(_outcomes(Dying(KIT), PART, deadline=time.monotonic() + 60))
    assert [outcome.case for outcome in found] == ["start of part x", "one", "start of part x", "rest of part x"]
    assert found[-1].note == "3 processes in a row ended at their first case or before it"
