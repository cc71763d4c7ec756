"""Delivery to real MLflow stores: what is in the journals is there afterwards, once."""

import json
import logging
import math
import os
import time
from pathlib import Path

import pytest

from rayface.config import TrackingConfig
from rayface.mlflow_environment import ENVIRONMENT
from rayface.sqlite_uri import sqlite_uri
from rayface.tracking import Delivery, Journal, deliver, tracking_uri
from rayface.tracking.server import Server
from rayface.tracking.uris import sync_command
from tests.tracking.mlflow_server import MlflowServer

TIMEOUT = 60


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One sqlite store for all tests of this file, in a folder that is not there yet; making one takes seconds."""
    return sqlite_uri(tmp_path_factory.mktemp("store") / "what?" / "100%20 #1" / "mlflow.db")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A delivery sets what the user has not; take that back."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def delivery(spool, uri, **changes):
    settings = {"uri": uri, "experiment": "faces", "run_name": "test", "tags": {"commit": "abc"}} | changes
    return Delivery(spool, **settings)


def deliver_all(spool, uri, **changes):
    sender = delivery(spool, uri, **changes)
    sender.start()
    assert sender.close(TIMEOUT), sender.last_error
    return sender


def client(uri):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def history(uri, run_id, key):
    return [(point.step, point.value) for point in client(uri).get_metric_history(run_id, key)]


def runs(uri, experiment="faces"):
    found = client(uri).get_experiment_by_name(experiment)
    return [] if found is None else client(uri).search_runs([found.experiment_id])


def forget(spool, **changes):
    """Put the notes of a delivery back to an earlier state, as after a crash before they were written."""
    path = spool / "delivered.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_delivery_of_a_run_sends_everything(tmp_path, uri):
    run = tmp_path / "run"
    spool = run / "tracking"
    driver, worker = Journal(spool / "driver.jsonl"), Journal(spool / "rank0.jsonl")
    driver.params({"long": "x" * 9000, "empty": "", **{f"p{i}": i for i in range(120)}})
    for step in range(400):
        worker.metrics({"loss": 1 / (step + 1), "lr": 0.1, "images@s": step}, step)
    worker.metrics({"nan": math.nan, "up": math.inf}, 400)
    (run / "report.html").write_text("report")
    (run / "plots").mkdir()
    (run / "plots" / "loss.png").write_bytes(b"png")
    driver.artifact(run / "report.html")
    driver.artifact(run / "plots", "plots")
    driver.artifact(run / "gone.txt")
    driver.finish("FINISHED")

    sender = deliver_all(spool, uri)
    assert sender.last_error is None
    found = client(uri).get_run(sender.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "test"
    end = json.loads((spool / "driver.jsonl").read_text().splitlines()[-1])["time"]
    assert found.info.end_time == int(end * 1000)
    assert len(found.data.params) == 122
    assert found.data.params["p119"] == "119"
    assert len(found.data.params["long"]) == 6000
    assert found.data.params["long"].endswith("[9000 characters]")
    assert found.data.tags["commit"] == "abc"
    assert history(uri, sender.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(400)]
    assert history(uri, sender.run_id, "images_s") == [(step, step) for step in range(400)]  # MLflow allows no @
    assert math.isnan(found.data.metrics["nan"])
    assert found.data.metrics["up"] > 1e300
    written = json.loads((spool / "rank0.jsonl").read_text().splitlines()[0])["time"]
    first = client(uri).get_metric_history(sender.run_id, "loss")[0]
    assert first.timestamp == int(written * 1000)
    artifacts = client(uri).list_artifacts(sender.run_id)
    assert [entry.path for entry in artifacts] == ["plots", "report.html"]
    assert not Path("mlruns").exists()


def test_delivery_after_lost_answers_sends_nothing_twice(tmp_path, uri):
    spool = tmp_path / "run" / "tracking"
    journal = Journal(spool / "driver.jsonl")
    journal.params({"a": 1})
    for step in range(30):
        journal.metrics({"loss": step, "bad": math.nan}, step)
    journal.artifact(journal.path)
    num_runs = len(runs(uri))
    run_id = deliver_all(spool, uri).run_id

    forget(spool, cursors={})  # the answers got lost
    journal.metrics({"loss": 30}, 30)
    assert deliver_all(spool, uri).run_id == run_id
    forget(spool, cursors={}, run_id=None)  # and so did the run that had just been made
    assert deliver_all(spool, uri).run_id == run_id
    assert history(uri, run_id, "loss") == [(step, step) for step in range(31)]
    assert len(history(uri, run_id, "bad")) == 30
    assert client(uri).get_run(run_id).data.params == {"a": "1"}
    assert len(runs(uri)) == num_runs + 1


def test_delivery_of_a_batch_whose_answer_is_lost_counts_it_once(tmp_path, uri, monkeypatch):
    import mlflow

    log_batch = mlflow.MlflowClient.log_batch
    failures = iter([False, True, True])  # the tags get through, then two answers are lost

    def loses_answers(self, *arguments, **named):
        log_batch(self, *arguments, **named)
        if next(failures, False):
            raise ConnectionError("connection reset by http://me:secret@host/")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", loses_answers)
    monkeypatch.setattr("rayface.tracking.reader.MAX_BACKOFF_SECONDS", 0.1)
    spool = tmp_path / "run" / "tracking"
    journal = Journal(spool / "driver.jsonl")
    for step in range(5):
        journal.metrics({"loss": step}, step)
    sender = deliver_all(spool, uri)
    assert next(failures, None) is None
    assert sender.last_error is None  # it has passed
    assert history(uri, sender.run_id, "loss") == [(step, step) for step in range(5)]


def test_delivery_of_a_resumed_run_continues_it(tmp_path, uri):
    spool = tmp_path / "run" / "tracking"
    journal = Journal(spool / "driver.jsonl")
    journal.params({"lr": 0.1, "epochs": 5})
    journal.metrics({"loss": 1.0}, 0)
    journal.finish("FAILED")
    journal.close()
    run_id = deliver_all(spool, uri).run_id
    assert client(uri).get_run(run_id).info.status == "FAILED"

    journal = Journal(spool / "driver.jsonl")
    journal.params({"lr": 0.2, "epochs": 5, "new": "yes"})
    journal.metrics({"loss": 1.0}, 0)
    journal.metrics({"loss": 0.5}, 1)
    sender = deliver_all(spool, uri, tags={"commit": "def"})
    assert sender.run_id == run_id
    assert sender.last_error is None
    found = client(uri).get_run(run_id)
    assert found.info.status == "RUNNING"
    assert found.data.params == {"lr": "0.1", "epochs": "5", "new": "yes"}
    assert found.data.tags["changed.lr"] == "0.2"
    assert "changed.epochs" not in found.data.tags
    assert found.data.tags["commit"] == "def"
    assert history(uri, run_id, "loss") == [(0, 1.0), (1, 0.5)]
    journal.finish("FINISHED")
    assert deliver(spool, TIMEOUT)
    assert client(uri).get_run(run_id).info.status == "FINISHED"


def test_delivery_to_another_store_sends_everything(tmp_path, uri):
    spool = tmp_path / "run" / "tracking"
    Journal(spool / "driver.jsonl").metrics({"loss": 1.0}, 0)
    first = deliver_all(spool, uri)
    second = deliver_all(spool, uri, experiment="other")
    assert first.run_id != second.run_id
    assert history(uri, second.run_id, "loss") == [(0, 1.0)]


def test_delivery_of_refused_records_sends_the_rest(tmp_path, uri, caplog):
    spool = tmp_path / "run" / "tracking"
    journal = Journal(spool / "driver.jsonl")
    journal.metrics({"a": 1.0, "not//allowed": 2.0, "b": 3.0}, 0)
    journal.params({"c": 1, "../d": 2})
    with journal.path.open("ab") as file:
        file.write(b"smashed\n")
    journal.metrics({"a": 4.0}, 1)
    sender = delivery(spool, uri)
    sender.start()
    assert sender.close(TIMEOUT)
    assert "not//allowed" in sender.last_error
    assert "is not a record" in caplog.text
    data = client(uri).get_run(sender.run_id).data
    assert data.metrics == {"a": 4.0, "b": 3.0}
    assert data.params == {"c": "1"}


def test_delivery_of_a_spool_that_another_process_delivers_waits(tmp_path, uri):
    spool = tmp_path / "run" / "tracking"
    Journal(spool / "driver.jsonl").metrics({"loss": 1.0}, 0)
    first = delivery(spool, uri)
    first.start()
    deadline = time.monotonic() + TIMEOUT
    while first.run_id is None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = delivery(spool, uri)
    second.start()
    assert not second.close(1)
    assert second.last_error == "another process delivers this spool"
    assert first.close(TIMEOUT)
    assert deliver(spool, TIMEOUT)


def test_delivery_with_a_user_environment_keeps_it(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    deliver_all(tmp_path / "tracking", uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_delivery_of_an_empty_spool_makes_no_run(tmp_path, uri):
    assert deliver_all(tmp_path / "tracking", uri).run_id is None


def test_delivery_to_a_uri_with_credentials_does_not_show_them(tmp_path, caplog, monkeypatch):
    uri = "http://me:secret@127.0.0.1:9"

    def fails(self, uri, settings, run_id, output):
        raise OSError(f"no answer from {uri}")

    monkeypatch.setattr(Server, "__init__", fails)
    Journal(tmp_path / "driver.jsonl").metrics({"loss": 1.0}, 0)
    sender = delivery(tmp_path, uri)
    with caplog.at_level(logging.DEBUG):
        sender.start()
        assert not sender.close(0.5)
    assert sender.uri == "http://***@127.0.0.1:9"
    assert sender.last_error == "no answer from http://***@127.0.0.1:9"
    assert "no answer" in caplog.text
    assert "secret" not in caplog.text
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())


def test_deliver_with_masked_credentials_takes_them_from_the_environment(tmp_path, monkeypatch):
    seen = []

    def notes(self, uri, settings, run_id, output):
        seen.append((uri, settings.uri))
        raise OSError("no answer")

    monkeypatch.setattr(Server, "__init__", notes)
    Journal(tmp_path / "driver.jsonl").metrics({"loss": 1.0}, 0)
    real, shown = "http://me:se/cr@et@127.0.0.1:9", "http://***@127.0.0.1:9"
    delivery(tmp_path, real)
    for other in (None, "http://me:secret@another:9", shown):
        if other:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(
            ValueError, match=r"its password is not stored: give it again, or .* in MLFLOW_TRACKING_URI"
        ):
            deliver(tmp_path, 0.1)
        with pytest.raises(ValueError, match=r"^tracking.uri: http://\*\*\*@127.0.0.1:9: its password is not stored"):
            tracking_uri(TrackingConfig(uri=shown), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", real)
    assert not deliver(tmp_path, 0.1)
    assert set(seen) == {(real, shown)}
    assert tracking_uri(TrackingConfig(uri=shown), tmp_path) == real


def test_deliver_to_a_server_that_only_the_run_directory_names_is_refused(tmp_path, monkeypatch):
    uri = "http://127.0.0.1:9"
    delivery(tmp_path, uri)
    rule = (
        f"^tracking.uri: {uri}: is named by the run directory: .*: if it is your server, set MLFLOW_TRACKING_URI={uri}$"
    )
    for other in (None, "http://127.0.0.1:99"):
        if other:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(ValueError, match=rule):
            deliver(tmp_path, 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert deliver(tmp_path, TIMEOUT)  # nothing to send


def test_sync_command_sets_a_server_that_the_environment_does_not_name_but_never_a_masked_one(monkeypatch):
    uri, shown = "http://127.0.0.1:9", "http://***@127.0.0.1:9"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = f"(first set MLFLOW_TRACKING_URI to {shown}, with the password in place of ***)"
    assert sync_command(uri, "runs/a b") == f"MLFLOW_TRACKING_URI={uri} rayface sync 'runs/a b'"
    assert sync_command(shown, "runs/a") == f"rayface sync runs/a {words}"
    assert sync_command("sqlite:///m.db", "runs/a") == "rayface sync runs/a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}/")
    assert sync_command(uri, "runs/a") == "rayface sync runs/a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:se/cr@et@127.0.0.1:9")
    assert sync_command(shown, "runs/a") == "rayface sync runs/a"


def test_delivery_with_wrong_settings_is_refused_in_one_line(tmp_path):
    for uri in ("./mlruns", "file:///mlruns", "s3://bucket/mlruns"):
        with pytest.raises(ValueError, match=r"tracking\.uri .* must be sqlite"):
            delivery(tmp_path, uri)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder that can be created"):
        delivery(tmp_path, f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ValueError, match=r"must hold a tracking\.json"):
        deliver(tmp_path / "none", 1)


def test_delivery_to_a_relative_sqlite_file_keeps_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    delivery(tmp_path / "spool", "sqlite:///s.db?timeout=5")
    kept = json.loads((tmp_path / "spool" / "tracking.json").read_text())
    assert kept["uri"] == f"sqlite:///{tmp_path}/s.db?timeout=5"


@pytest.mark.long
def test_delivery_to_a_server_that_comes_late_and_dies_sends_everything(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("rayface.tracking.reader.MAX_BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr("rayface.tracking.reader.POLL_SECONDS", 0.05)
    (tmp_path / "store").mkdir()
    server = MlflowServer(tmp_path / "store")
    run = tmp_path / "run"
    journal = Journal(run / "tracking" / "rank0.jsonl")
    sender = delivery(run / "tracking", server.uri)
    step = 0

    def train(num_steps):
        nonlocal step
        for _ in range(num_steps):
            journal.metrics({"loss": 1 / (step + 1), "nan": math.nan}, step)
            step += 1

    try:
        sender.start()
        journal.params({"lr": 0.1})
        train(1200)  # does not wait for a server, of which there is none
        while sender.last_error is None:
            time.sleep(0.05)
        assert sender.run_id is None
        server.start()
        server.wait()
        for _ in range(600):  # until the first steps are there; more come all the time
            train(1)
            time.sleep(0.05)
            if sender.run_id and len(history(server.uri, sender.run_id, "loss")) >= 1200:
                break
        server.kill()
        train(1500)
        (run / "report.html").write_text("the report")
        journal.artifact(run / "report.html", "final")
        journal.finish("FINISHED")
        assert not sender.close(1)
        server.start()
        server.wait()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert deliver(run / "tracking", TIMEOUT)  # what `rayface sync` does, later
        assert capfd.readouterr() == ("", "")
        assert len(runs(server.uri)) == 1
        found = runs(server.uri)[0]
        assert found.info.run_id == sender.run_id
        assert found.info.status == "FINISHED"
        assert found.data.params == {"lr": "0.1"}
        assert history(server.uri, sender.run_id, "loss") == [(i, 1 / (i + 1)) for i in range(step)]
        assert len(history(server.uri, sender.run_id, "nan")) == step
        local = client(server.uri).download_artifacts(sender.run_id, "final/report.html", str(tmp_path))
        assert Path(local).read_text() == "the report"
    finally:
        server.kill()
