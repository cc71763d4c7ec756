"""The journal of a job whose output is on an object store: nothing that was told is lost."""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rayface.config import TrackingConfig
from rayface.tracking import deliver, delivery
from rayface.tracking.job import TrackedJob, tracked_job
from rayface.tracking.server import Settings
from rayface.tracking.spool import spool


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for what must stay, and no MLflow but what a test names."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "state"


def work(root: str, config: TrackingConfig, step: int) -> TrackedJob:
    with spool(root) as folder, tracked_job(folder, config, {"model": "m"}) as job:
        job.journal.metrics({"num_rows": step}, step=step)
    return job


def records(text: bytes) -> list[str]:
    return [json.loads(line)["kind"] for line in text.splitlines()]


class Server:
    """What a delivery needs of MLflow; down, or up and remembering what it is told."""

    up = False
    told: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, uri: str, settings: Settings, run_id: str | None, output: str | None) -> None:
        if not self.up:
            raise ConnectionError("MLflow is down")
        self.experiment_id = "1"
        self.run_id, self._spool = settings.spool_id, settings.spool_id

    def log(self, records: list[dict[str, Any]]) -> None:
        self.told.extend((self._spool, record["kind"]) for record in records)

    def end(self, status: str, seconds: float) -> None:
        self.told.append((self._spool, status))


def test_spool_of_an_undelivered_journal_is_stored_and_delivered_later(object_store, state, monkeypatch):
    monkeypatch.setattr(delivery, "Server", Server)
    root, config = object_store.uri("emb"), TrackingConfig(uri="http://mlflow.test", timeout=0.2)
    assert work(root, config, 0).delivered is False
    assert not list(state.rglob("*.jsonl"))  # so that any machine may go on
    assert work(root, config, 1).delivered is False
    files = object_store.files()
    assert records(files["emb/journal/driver.jsonl"]) == ["params", "metrics", "finish"] * 2
    monkeypatch.setattr(Server, "up", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.test/")
    with spool(root) as folder:
        assert deliver(folder / "journal", timeout=60)
    ((spool_id, *_), *_) = Server.told
    assert Server.told == [(spool_id, kind) for kind in ["params", "metrics"] * 2 + ["FINISHED"]]
    assert json.loads(object_store.files()["emb/journal/delivered.json"])["ended"] is True


def test_spool_without_a_server_keeps_mlflow_in_the_project(object_store, state, monkeypatch, tmp_path):
    monkeypatch.setattr(delivery, "Server", Server)
    monkeypatch.chdir(tmp_path)
    job = work(object_store.uri("emb"), TrackingConfig(timeout=0), 0)
    assert job.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (state / "rayface" / "jobs").is_dir()


def test_spool_that_cannot_be_stored_is_kept_locally_and_resumed(object_store, state, monkeypatch, caplog):
    config = TrackingConfig(enabled=False)

    def refuse(*args: object) -> None:
        raise OSError("ACCESS_DENIED")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr("rayface.tracking.spool.write_bytes", refuse)
        work(object_store.uri("emb"), config, 0)
    (path,) = state.rglob("driver.jsonl")
    assert f"(ACCESS_DENIED): the journal is kept in {path.parent}" in caplog.text
    assert object_store.secret not in caplog.text
    work(object_store.uri("emb"), config, 1)
    assert records(object_store.files()["emb/journal/driver.jsonl"]).count("metrics") == 2
    assert not path.exists()


def test_spool_stores_what_readers_wrote_and_deletes_the_run_that_it_replaces(object_store, state):
    root = object_store.uri("emb")
    for name in ("offline-run-1-abc", "offline-run-1-xyz", "offline-run-2-abc"):
        object_store.put(f"emb/wandb/{name}/run.wandb", b"old")
    with spool(root) as folder:
        for name in ("wandb/offline-run-2-abc/run.wandb", "tensorboard/events", "wandb/latest-run/run.wandb"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"new")
    found = {name.removeprefix("emb/"): content for name, content in object_store.files().items()}
    assert found == {
        "tensorboard/events": b"new",
        "wandb/offline-run-1-xyz/run.wandb": b"old",  # of another run
        "wandb/offline-run-2-abc/run.wandb": b"new",
    }
    assert not any(path.is_file() for path in state.rglob("*"))


@pytest.mark.parametrize(("local", "kept"), [(b"", b"stored\n"), (b"st", b"stored\n"), (b"stored\nmore\n", None)])
def test_spool_takes_the_stored_journal_unless_the_local_one_is_longer(object_store, state, local, kept):
    root = object_store.uri("emb")
    with spool(root) as folder:
        pass
    object_store.put("emb/journal/driver.jsonl", b"stored\n")
    object_store.put("emb/journal/tracking.json", b"{}")
    (folder / "journal").mkdir(parents=True)
    (folder / "journal" / "driver.jsonl").write_bytes(local)
    with spool(root) as folder:
        assert (folder / "journal" / "driver.jsonl").read_bytes() == (kept or local)
        assert (folder / "journal" / "tracking.json").exists() == (kept is not None)


def test_spool_of_an_untracked_output_is_refused_and_unchanged(object_store):
    object_store.put("emb/part.parquet", b"x")
    with (
        pytest.raises(ValueError, match="give the directory of a tracked run"),
        spool(object_store.uri("emb")) as folder,
    ):
        deliver(folder / "journal", timeout=1)
    assert set(object_store.files()) == {"emb/part.parquet"}
