"""Where a tracked job comes from, and how its run is found in MLflow."""

import sys
from pathlib import Path

import pytest

from rayface.sqlite_uri import sqlite_uri
from rayface.tracking.origin import job_name, origin, run_link, server_command


def test_origin_names_user_and_command_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/venv/bin/rayface", "train", "tracking.uri=http://me:secret@host", "name=a b"])
    monkeypatch.setenv("RAYFACE_COMMIT", "c0ffee-dirty")
    monkeypatch.setattr("rayface.tracking.origin.commit", lambda: "c0ffee-dirty")
    monkeypatch.setenv("LOGNAME", "ann")
    tags = origin()
    assert tags["mlflow.source.name"].startswith("rayface train")
    assert tags["mlflow.note.content"].startswith("```bash\nrayface train")
    assert "secret" not in str(tags)
    assert (tags["mlflow.user"], tags["git_commit"]) == ("ann", "c0ffee-dirty")
    assert tags["mlflow.source.git.commit"] == "c0ffee"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/a-001", "a-001"),
        ("demo/run", "demo/run"),
        ("emb", "emb"),
        ("runs", "runs"),
        ("/data/webface/run", "webface/run"),
    ],
)
def test_job_name_is_the_path_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert job_name(Path(folder)) == name


def test_run_link_of_a_server_and_of_a_database_opens_model_training() -> None:
    end = "#/experiments/3/runs/ab12?workflowType=machine_learning"
    assert run_link("https://mlflow.lab/", "3", "ab12") == f"https://mlflow.lab/{end}"
    assert run_link("sqlite:////x/mlflow.db", "3", "ab12") == f"http://127.0.0.1:5000/{end}"


def test_server_command_fits_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/mlflow")
    monkeypatch.chdir(tmp_path)
    command = "mlflow ui --backend-store-uri"
    assert server_command(f"sqlite:///{tmp_path}/mlflow.db") == f"{command} sqlite:///mlflow.db"
    far = f"sqlite:////{'d' * 60}/mlflow.db"
    assert server_command(far) == f"{command} \\\n  {far}"
    assert server_command(sqlite_uri(tmp_path / "a?" / "mlflow.db")) == f"{command} {sqlite_uri('a?/mlflow.db')}"
    assert server_command("http://mlflow:5000") is None
