"""Registration of a run's model in a real MLflow store."""

import json
from pathlib import Path

import pytest

from rayface.storage import RemotePath, Segments, lease
from rayface.tracking import Delivery, Journal
from rayface.training.registry import register
from rayface.training.run_directory import RunDirectory
from tests.conftest import ObjectStore

TIMEOUT = 60


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A finished run that nothing has delivered yet; MLflow's link to its model is by its journal only."""
    run = tmp_path / "runs" / "a-001"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(b"weights")
    facts = {"backbone": "mini", "backbone_args": {"width": 1}, "embedding_size": 64, "image_size": 32}
    facts |= {"licence": "CC0", "sha256": "ab12", "metrics": {"accuracy_mean": 0.75}}
    (run / "model.json").write_text(json.dumps(facts))
    (run / "config.yaml").write_text("name: faces\n")
    journal = Journal(run / "journal" / "driver.jsonl")
    counts = {"num_images": 10, "num_classes": 2}
    journal.dataset("faces", digest="d" * 64, source="s3://bucket/faces", context="training", **counts)
    journal.model(run)
    journal.finish("FINISHED")
    Delivery(journal.path.parent, uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="e", run_name="demo/a", tags={})
    return run


def test_register_of_a_finished_run_makes_one_version_with_the_facts_of_its_model(run: Path, tmp_path: Path) -> None:
    (run / "result.json").write_text("{}")
    first = register(RunDirectory(run), timeout=TIMEOUT)
    assert (first.model, first.version, first.created) == ("faces", 1, True)
    assert register(RunDirectory(run)).as_dict() == {**first.as_dict(), "created": False}
    assert register(RunDirectory(run), "other").version == 1

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version("faces", "1")
    known = {"backbone": "mini", "embedding_size": "64", "licence": "CC0", "sha256": "ab12", "accuracy_mean": "0.75"}
    assert known.items() <= version.tags.items()
    logged = client.get_run(version.run_id)
    (dataset,) = logged.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.dataset.source_type) == ("faces", "d" * 36, "s3")
    assert dataset.tags[0].value == "training"
    (output,) = logged.outputs.model_outputs
    assert version.source == client.get_logged_model(output.model_id).artifact_location
    model = client.get_logged_model(output.model_id)
    assert (str(model.status), model.name) == ("READY", "demo_a")
    files = sorted(path.name for path in Path(model.artifact_location.removeprefix("file://")).iterdir())
    assert files == ["MLmodel", "model.json", "model.safetensors"]


def test_register_of_an_unfinished_run_or_with_a_bad_name_is_refused_in_one_line(run: Path) -> None:
    with pytest.raises(ValueError, match=r"^RUN .*a-001: is not finished: resume it"):
        register(RunDirectory(run))
    (run / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^--name: a/b: must not be empty or contain / : or '"):
        register(RunDirectory(run), "a/b")
    (run / "journal" / "tracking.json").unlink()
    with pytest.raises(ValueError, match="give the directory of a tracked run"):
        register(RunDirectory(run))


def test_register_of_a_run_in_a_store_makes_one_version_and_keeps_what_was_delivered(
    run: Path, tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 2.0)  # of a machine under load
    (run / "result.json").write_text("{}")
    stored = RunDirectory(RemotePath(object_store.uri("runs/a-001")))
    for path in (path for path in run.rglob("*") if path.is_file()):
        remote = stored.path / path.relative_to(run).as_posix()
        if path.suffix == ".jsonl":
            Segments(path, remote).push()
        else:
            remote.upload(path.read_bytes())
    first = register(stored, timeout=TIMEOUT)
    assert (first.model, first.version, first.created) == ("faces", 1, True)
    assert stored.mlflow_run_id() is not None
    assert register(stored).as_dict() == {**first.as_dict(), "created": False}
    assert not stored.working.exists()
