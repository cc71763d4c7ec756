"""MLflow as a delivery needs it, with a client that remembers: what is logged, shortened, refused and left out."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from rayface.storage import RemotePath
from rayface.tracking.journal import Journal, read_records
from rayface.tracking.server import Server, Settings, checked_uri, make_database_folder

DOWN = "TEMPORARILY_UNAVAILABLE"


class Client:
    """Remembers what it is told; refuses batches with a key of `refuses`."""

    def __init__(self, refuses: tuple[str, ...] = (), code: str = "INVALID_PARAMETER_VALUE") -> None:
        self.refuses, self.code = refuses, code
        self.runs: list[SimpleNamespace] = []
        self.batches: list[tuple[str, list[str]]] = []
        self.logged: dict[str, dict[str, Any]] = {"metrics": {}, "params": {}, "tags": {}}
        self.artifacts: list[tuple[str, str, str | None]] = []
        self.experiments: dict[str, str | None] = {}
        self.experiment_tags: dict[str, str] = {}
        self.calls: list[tuple[Any, ...]] = []

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        known = name in self.experiments
        return SimpleNamespace(experiment_id=name, tags=self.experiment_tags) if known else None

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        self.experiment_tags[key] = value

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = artifact_location
        return name

    def search_runs(self, experiments: list[str], text: str, max_results: int) -> list[SimpleNamespace]:
        return [run for run in self.runs if repr(run.tags["rayface.spool_id"]) in text][:max_results]

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        info = SimpleNamespace(
            run_id=f"run{len(self.runs)}", start_time=start_time, name=run_name, experiment_id=experiment
        )
        self.runs.append(SimpleNamespace(info=info, tags=tags))
        return self.runs[-1]

    def get_run(self, run_id: str) -> SimpleNamespace:
        info = SimpleNamespace(run_id=run_id, experiment_id="faces")
        return SimpleNamespace(info=info, data=SimpleNamespace(params=self.logged["params"]))

    def log_batch(self, run_id: str, **batch: list[Any]) -> None:
        ((kind, items),) = batch.items()
        self.batches.append((kind, [item.key for item in items]))
        if any(item.key in self.refuses for item in items):
            raise MlflowException("not this one", getattr(mlflow.protos.databricks_pb2, self.code))
        self.logged[kind].update({item.key: item.value for item in items})

    def log_inputs(self, run_id: str, datasets: list[Any]) -> None:
        self.calls.append((run_id, *datasets))

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self.artifacts.append(("file", Path(path).name, folder))

    def log_artifacts(self, run_id: str, path: str, folder: str | None) -> None:
        self.artifacts.append(("folder", Path(path).name, folder))

    def search_logged_models(self, *arguments: Any, **named: Any) -> list[Any]:
        raise MlflowException("no", getattr(mlflow.protos.databricks_pb2, self.code))

    def set_terminated(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def update_run(self, run_id: str, status: str) -> None:
        self.calls.append((run_id, status))


def settings(**changes: Any) -> Settings:
    given = {"uri": "http://here", "experiment": "faces", "run_name": "x", "tags": {"commit": "abc"}, "created": 2.5}
    return Settings(**{**given, "spool_id": "s1", **changes})


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of (client, settings) -> server that uses it."""

    def connect(client: Client, own: Settings | None = None, run_id: str | None = None, **named: str) -> Server:
        monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: client)
        return Server("http://here", own or settings(), run_id, **named)

    return connect


def metrics(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "metrics", "time": 1.25, "step": step, "values": values}


def test_server_of_a_new_spool_makes_its_run_and_finds_it_again(connect: Any) -> None:
    client = Client()
    first = connect(client)
    assert client.runs[0].info.start_time == 2500
    assert client.logged["tags"] == {"commit": "abc"}
    assert connect(client).run_id == first.run_id == "run0"
    assert connect(client, settings(spool_id="s2")).run_id == "run1"
    assert connect(client, run_id="known").run_id == "known"
    assert len(client.runs) == 2


def test_server_of_a_new_or_older_experiment_makes_it_open_as_model_training(connect: Any) -> None:
    client = Client()
    connect(client)
    assert client.experiment_tags == {"mlflow.experimentKind": "custom_model_development"}
    client.experiment_tags = {"mlflow.experimentKind": "finetuning"}
    connect(client, settings(spool_id="s2"))
    assert client.experiment_tags == {"mlflow.experimentKind": "finetuning"}  # the user has chosen it


def test_server_makes_a_run_with_user_and_name_of_its_origin(connect: Any) -> None:
    client = Client()
    connect(client, settings(tags={"mlflow.user": "ann"}, run_name="demo/run"))
    assert client.runs[0].tags == {"mlflow.user": "ann", "rayface.spool_id": "s1", "mlflow.runName": "demo/run"}


def test_server_of_a_sqlite_file_keeps_artifacts_beside_it(connect: Any, tmp_path: Path) -> None:
    client = Client()
    connect(client, settings(uri=f"sqlite:///{tmp_path}/mlflow.db?x=1"))
    assert client.experiments == {"faces": (tmp_path / "mlartifacts").as_uri()}
    client = Client()
    connect(client)
    assert client.experiments == {"faces": None}


def test_log_of_many_metrics_sends_them_in_batches_with_allowed_names(connect: Any) -> None:
    client = Client()
    server = connect(client)
    assert server.log([metrics(step, **{"images@s": step, "loss": 0.5}) for step in range(800)]) is None
    sizes = [len(keys) for kind, keys in client.batches if kind == "metrics"]
    assert sizes == [1000, 600]
    assert client.logged["metrics"] == {"images_s": 799, "loss": 0.5}


def test_log_of_a_changed_param_becomes_a_tag(connect: Any) -> None:
    client = Client()
    server = connect(client)
    server.log([{"kind": "params", "values": {"lr": "0.1", "long": "x" * 7000}}])
    server.log([{"kind": "params", "values": {"lr": "0.2", "new": "1"}}])
    assert client.logged["params"]["lr"] == "0.1"
    assert client.logged["params"]["new"] == "1"
    assert client.logged["tags"]["changed.lr"] == "0.2"
    long = client.logged["params"]["long"]
    assert (len(long), long[-24:]) == (6000, "xx ... [7000 characters]")


def test_log_of_a_changed_param_beside_a_refused_one_becomes_a_tag(connect: Any) -> None:
    client = Client(refuses=("bad",))
    server = connect(client)
    server.log([{"kind": "params", "values": {"lr": "0.1"}}])
    refused = server.log([{"kind": "params", "values": {"lr": "0.2", "bad": "1", "new": "2"}}])
    assert refused == "MLflow refused params 'bad': not this one"
    assert client.logged["params"] == {"lr": "0.1", "new": "2"}
    assert client.logged["tags"]["changed.lr"] == "0.2"


def test_log_with_a_refused_name_sends_the_others_and_says_which(connect: Any) -> None:
    client = Client(refuses=("bad",))
    server = connect(client)
    refused = server.log([metrics(0, a=1.0, bad=2.0, b=3.0, c=4.0), {"kind": "tags", "values": {"t": "1"}}])
    assert refused == "MLflow refused metrics 'bad': not this one"
    assert client.logged["metrics"] == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert client.logged["tags"]["t"] == "1"


def test_log_of_a_large_batch_with_a_refused_name_halves_it(connect: Any) -> None:
    client = Client(refuses=("m300",))
    server = connect(client)
    assert server.log([metrics(0, **{f"m{n}": 1.0 for n in range(512)})]) is not None
    assert len(client.logged["metrics"]) == 511
    assert len([kind for kind, _ in client.batches if kind == "metrics"]) == 19  # two halves, nine times


def test_log_to_a_server_that_is_down_raises_and_does_not_cut_the_batch(connect: Any) -> None:
    client = Client()
    server = connect(client)
    client.refuses, client.code = ("a",), DOWN
    with pytest.raises(MlflowException):
        server.log([metrics(0, a=1.0, b=2.0)])
    assert [keys for kind, keys in client.batches if kind == "metrics"] == [["a", "b"]]


def test_log_artifact_of_files_and_folders_leaves_out_what_is_gone(
    connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    server = connect(client)
    (tmp_path / "report.html").touch()
    (tmp_path / "plots").mkdir()
    for path, folder in (("report.html", ""), ("plots", "plots"), ("gone.txt", "")):
        with caplog.at_level(logging.WARNING):
            server.log_artifact(tmp_path, path, folder)
    assert client.artifacts == [("file", "report.html", None), ("folder", "plots", "plots")]
    assert f"artifact {tmp_path}/gone.txt is missing" in caplog.text


@pytest.mark.parametrize(("source", "kind"), [("/data/faces", "local"), ("s3://bucket/faces", "s3")])
def test_log_of_a_dataset_tells_its_digest_source_context_and_counts(connect: Any, source: str, kind: str) -> None:
    client = Client()
    values = {"name": "faces", "digest": "d" * 64, "source": source, "context": "training", "num_images": "9"}
    connect(client).log([{"kind": "dataset", "values": values}])
    ((run, given),) = client.calls
    found = given.dataset
    assert (run, found.name, found.digest, found.source_type) == ("run0", "faces", "d" * 36, kind)
    assert (json.loads(found.source), json.loads(found.profile)) == ({"uri": source}, {"num_images": 9})
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_end_and_reopen_tell_the_status_and_when(connect: Any) -> None:
    client = Client()
    server = connect(client)
    server.end("KILLED", 3.5)
    server.reopen()
    assert client.calls == [("run0", "KILLED", 3500), ("run0", "RUNNING")]


@pytest.mark.parametrize("uri", ["./mlruns", "file:///mlruns", "s3://bucket/mlruns", "mlruns", "http:/x"])
def test_checked_uri_of_a_folder_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(
        ValueError, match=r"^tracking.uri .* must be sqlite:///FILE, http\(s\)://SERVER or another"
    ) as e:
        checked_uri(uri)
    assert "\n" not in str(e.value)


def test_checked_uri_of_a_server_or_database_stays_and_of_a_file_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("http://server:5000", "https://server", "postgresql://u@host/db", "databricks"):
        assert checked_uri(uri) == uri
    assert checked_uri("sqlite:///s.db?timeout=5") == f"sqlite:///{tmp_path}/s.db?timeout=5"


def test_make_database_folder_of_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    make_database_folder(f"sqlite:///{tmp_path}/deep/down/mlflow.db?x=1")
    assert (tmp_path / "deep" / "down").is_dir()
    make_database_folder("http://server")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^tracking.uri .* must be in a folder that can be "):
        make_database_folder(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_log_model_to_an_older_server_keeps_the_weights_as_an_artifact(connect: Any, tmp_path: Path) -> None:
    client = Client(code="ENDPOINT_NOT_FOUND")
    (tmp_path / "journal").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"w")
    connect(client).log_model(tmp_path / "journal", "..")
    assert client.artifacts == [("file", "model.safetensors", None)]
    client.code = DOWN
    with pytest.raises(MlflowException):
        connect(client).log_model(tmp_path / "journal", "..")


def test_server_sends_a_file_of_an_object_store_and_skips_a_missing_one(
    connect: Any, object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    object_store.put("core/report.html", b"<html>")
    out = RemotePath(object_store.uri("core"))
    journal = Journal(tmp_path / "journal" / "driver.jsonl")
    journal.artifact(out / "report.html", "prune")
    journal.artifact(out / "gone.json")
    journal.close()
    assert object_store.secret not in journal.path.read_text()
    client = Client()
    server = connect(client, settings(), output=out.uri)
    with caplog.at_level(logging.WARNING, "rayface"):
        for record, _ in read_records(journal.path, 0):
            server.log_artifact(journal.path.parent, record["path"], record["folder"])
    assert client.artifacts == [("file", "report.html", "prune")]
    (line,) = [record.getMessage() for record in caplog.records if "gone.json" in record.getMessage()]
    assert line.endswith("no such file, skipped")


def test_server_skips_files_out_of_the_run_directory_with_a_warning(
    connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, secret = tmp_path / "run", tmp_path / "id_rsa"
    (run / "plots").mkdir(parents=True)
    (run / "journal").mkdir()
    secret.write_text("private")
    (run / "report.html").write_text("<html>")
    (run / "link").symlink_to(secret)
    (run / "plots" / "loss.png").symlink_to(secret)
    names = [str(secret), "../../id_rsa", "../link", "../plots", "file:///etc/passwd"]
    out = "s3://bucket/run?region=x"
    names += ["s3://bucket/other/a?region=x", "s3://bucket/run/../a?region=x", "s3://bucket/run/a?endpoint_override=me"]
    client = Client()
    server = connect(client, output=out)
    with caplog.at_level(logging.WARNING, "rayface"):
        for name in [*names, "../report.html"]:
            server.log_artifact(run / "journal", name, "")
    assert client.artifacts == [("file", "report.html", None)]
    skipped = [record.getMessage() for record in caplog.records]
    assert skipped == [f"tracking: artifact {name} is outside of the run directory, skipped" for name in names]


def test_server_does_not_log_or_register_a_model_whose_files_are_links_out_of_the_run(
    connect: Any, tmp_path: Path
) -> None:
    run, client = tmp_path / "run", Client(code="ENDPOINT_NOT_FOUND")
    (run / "journal").mkdir(parents=True)
    (tmp_path / "secret").write_text("private")
    (run / "model.safetensors").write_bytes(b"w")
    (run / "model_card.md").symlink_to(tmp_path / "secret")
    connect(client).log_model(run / "journal", "..")
    with pytest.raises(ValueError, match=r"^RUN .*run: the model's files must be in it, not links"):
        connect(client).register(run, "faces", {})
    assert client.artifacts == []
