"""A job's journal, from its start to however it ends."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from rayface.config import TrackingConfig
from rayface.tracking.job import tracked_job
from rayface.tracking.journal import Journal, read_records
from rayface.tracking.origin import origin


class StoppedError(Exception):
    pass


def end_by(error):
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("ending", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "FAILED"), (StoppedError, "KILLED")],
)
def test_tracked_job_that_ends_in_an_error_records_its_status(tmp_path, ending, status):
    job = tracked_job(tmp_path, TrackingConfig(enabled=False), {"size": 8}, interrupts=(StoppedError,))
    with nullcontext() if ending is None else pytest.raises(ending), job:
        end_by(ending)
    records = [record for record, _ in read_records(tmp_path / "journal" / "driver.jsonl", 0)]
    assert [record["kind"] for record in records] == ["params", "finish"]
    assert records[0]["values"] == {"size": "8"}
    assert records[-1]["status"] == status


@pytest.mark.parametrize(("ending", "raised"), [(StoppedError, StoppedError), (None, OSError)])
def test_tracked_job_on_a_full_disk_raises_its_own_error_and_ends_its_delivery(tmp_path, monkeypatch, ending, raised):
    config = TrackingConfig(enabled=True, uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr(Journal, "finish", lambda *_: Path("/dev/full").write_text("x"))
    with pytest.raises(raised), tracked_job(tmp_path, config, {}, interrupts=(StoppedError,)) as job:
        end_by(ending)
    assert job.delivered is True  # of what there is, nothing
    with pytest.raises(OSError, match="Bad file descriptor"):
        job.journal.params({"closed": True})


def test_tracked_job_with_mlflow_carries_its_tags_and_origin(tmp_path, monkeypatch):
    config = TrackingConfig(enabled=True, uri=f"sqlite:///{tmp_path / 'mlflow.db'}", timeout=0.0)
    monkeypatch.chdir(tmp_path)
    with tracked_job(tmp_path / "runs" / "a", config, {}, tags={"rayface.sweep": "try-001"}) as job:
        assert (job.uri, job.link) == (config.uri, None)  # MLflow has not answered in 0 s
    settings = json.loads((tmp_path / "runs" / "a" / "journal" / "tracking.json").read_text())
    assert settings["run_name"] == "a"
    assert settings["tags"] == {**origin(), "rayface.sweep": "try-001"}
