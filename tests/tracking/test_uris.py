"""Where a job is tracked: the setting, the environment, or a file beside the job's folder."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from rayface.config import TrackingConfig, load
from rayface.files import write_json
from rayface.tracking.uris import VARIABLE, shared_tracking, tracking_uri


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_tracking_uri_prefers_the_setting_then_the_environment_then_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, server = tmp_path / "runs" / "a", TrackingConfig(uri="http://setting")
    assert tracking_uri(TrackingConfig(), folder) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv(VARIABLE, "http://environment")
    assert tracking_uri(TrackingConfig(), folder) == "http://environment"
    assert tracking_uri(server, folder) == "http://setting"


def test_tracking_uri_with_a_masked_password_takes_it_from_the_environment_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = TrackingConfig(uri="http://***@server")
    with pytest.raises(ValueError, match=r"^tracking.uri: http://\*\*\*@server: its password is not") as caught:
        tracking_uri(masked, tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(VARIABLE, "http://me:secret@server")
    assert tracking_uri(masked, tmp_path) == "http://me:secret@server"


def test_tracking_uri_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tracking.uri './mlruns' must be sqlite:///FILE"):
        tracking_uri(TrackingConfig(uri="./mlruns"), tmp_path)


def test_shared_tracking_fixes_a_file_and_leaves_the_address_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = shared_tracking(TrackingConfig(experiment="e"), tmp_path / "sweep")
    assert (fixed.uri, fixed.experiment) == (f"sqlite:///{tmp_path}/mlflow.db", "e")
    monkeypatch.setenv(VARIABLE, "http://me:secret@server")
    assert shared_tracking(TrackingConfig(), tmp_path / "sweep").uri is None


def test_tracking_uri_of_all_jobs_of_a_project_is_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: tmp_path / "home" / name)
    jobs = ["runs/a-001", "sweeps/b-001", "experiments/c/embed", "core", "home/rayface/jobs/emb-1"]
    assert {tracking_uri(TrackingConfig(), Path(job)) for job in jobs} == {f"sqlite:///{tmp_path}/mlflow.db"}
    elsewhere = tmp_path.parent / "other" / "run"
    assert tracking_uri(TrackingConfig(), elsewhere) == f"sqlite:///{elsewhere.parent}/mlflow.db"


def test_tracking_uri_in_a_folder_with_special_characters_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "a%20b?c#d"
    project.mkdir()
    monkeypatch.chdir(project)
    found = tracking_uri(TrackingConfig(), Path("runs/a"))
    given = load(overrides=["tracking.uri=sqlite:///mlflow.db"]).tracking
    assert found == tracking_uri(given, Path("runs/a")) == tracking_uri(TrackingConfig(uri=found), Path("runs/a"))
    assert make_url(found).database == str(project / "mlflow.db")


def test_tracking_uri_of_a_project_with_older_stores_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, old = tmp_path / "runs" / "a", tmp_path / "runs" / "mlflow.db"
    run.mkdir(parents=True)
    old.touch()
    assert tracking_uri(TrackingConfig(), run) == f"sqlite:///{old}"  # the project has only this one
    (tmp_path / "mlflow.db").touch()
    assert tracking_uri(TrackingConfig(), run) == f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"uri": f"sqlite:///{old}", "experiment": "e", "run_name": "a", "tags": {}, "spool_id": "1"}
    (run / "journal").mkdir()
    write_json(run / "journal" / "tracking.json", {**settings, "created": 0.0})
    assert tracking_uri(TrackingConfig(), run) == f"sqlite:///{old}"  # this run is in it


def test_tracking_uri_in_a_ray_job_is_beside_an_output_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "x"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert tracking_uri(TrackingConfig(), tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
