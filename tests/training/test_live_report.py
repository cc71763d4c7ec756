"""The report of a run that trains."""

import time

import pytest

from rayface import config as configs
from rayface.training import live_report
from rayface.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    monkeypatch.setattr(live_report, "_POLL_SECONDS", 0.01)
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_config(configs.load("debug"))
    return directory


def test_report_of_a_run_that_trains_reloads_until_it_ends(run, monkeypatch):
    monkeypatch.setattr(live_report, "REPORT_SECONDS", 0.02)
    written = []
    monkeypatch.setattr("rayface.training.report.write_report", lambda run, **values: written.append(values))
    with live_report.reported(run):
        run.worker_journal().metrics({"train/loss": 5.0, "eval/accuracy": 0.7}, 4)
        for _ in range(1000):
            if written:
                break
            time.sleep(0.01)
    assert [values["refresh"] for values in written] == [0.02, 0]
    assert dict(written[0]["table"])["accuracy"] == "70.00% at step 4"


def test_report_page_with_refresh_loads_itself_again_and_without_it_does_not(run):
    from rayface.training.report import write_report

    series = [(1, 5.0, 1e9), (2, 4.0, 1e9 + 1)]
    write_report(run, metrics={"train/loss": series}, table=[], refresh=30)
    assert '<meta http-equiv="refresh" content="30">' in run.report.read_text()
    assert not run.plots.exists()
    write_report(run, metrics={"train/loss": series}, table=[])
    assert "http-equiv" not in run.report.read_text()


def test_report_of_a_short_run_is_not_written_before_its_end(run):
    with live_report.reported(run):
        run.worker_journal().metrics({"checkpoint/seconds": 1.0}, 4)
        time.sleep(0.1)
    assert not run.report.exists()


def test_report_of_a_long_run_has_no_more_points_than_that_of_a_shorter_one(run, monkeypatch):
    monkeypatch.setattr(live_report, "MAX_POINTS", 8)
    monkeypatch.setattr(RunDirectory, "read_metrics", lambda _run: pytest.fail("the whole journal is read again"))
    metrics, journal = live_report._Metrics(run), run.worker_journal()
    for step in range(1, 1001):
        journal.metrics({"train/loss": 1.0 / step}, step)
        if step % 100 == 0:
            assert metrics.read() is False
            assert len(metrics.points()["train/loss"]) <= 9
    journal.metrics({"eval/accuracy": 0.7}, 1000)
    assert metrics.read() is True
    points = metrics.points()
    assert [point[:2] for point in points["eval/accuracy"]] == [(1000, 0.7)]
    steps = [step for step, _, _ in points["train/loss"]]
    assert steps == [1, *range(129, 1000, 128), 1000]
