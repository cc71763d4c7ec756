"""The files of a run."""

import os
import pickle
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import rayface
from rayface import config as configs
from rayface.files import write_file, write_json
from rayface.storage import DataError, RemotePath, StorageError, lease
from rayface.training import run_store
from rayface.training.recovery.interrupt import run_interruptibly
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import CONTROLLER, RunDirectory
from tests.conftest import ObjectStore

NAMES = (
    r"config\.yaml|data\.json|outcome\.json|faults\.log|restarts\.json|rollbacks\.json|rank0\.jsonl|checkpoints|beats|"
    r"hang|leave|\.preflight"
)


def test_files_of_a_run_are_named_by_no_other_module():
    root = Path(rayface.__file__).parent
    joined = re.compile(rf'(?:/ |= |\()f?"(?:{NAMES})"')
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if joined.search(path.read_text())}
    # models/run_files.py holds the names that RunDirectory shares with the rooms below training.
    assert found == {
        "models/run_files.py",
        *(f"training/run_{name}.py" for name in ("directory", "messages", "results")),
    }


def test_run_directory_of_a_text_equals_that_of_its_path(tmp_path, object_store):
    assert RunDirectory(str(tmp_path)) == RunDirectory(f"file://{tmp_path}") == RunDirectory(tmp_path)
    journal = RunDirectory(tmp_path).journal("driver")
    journal.metrics({"train/loss": 0.5}, 3)
    journal.close()
    assert RunDirectory(str(tmp_path)).to_pandas().loc[3, "train/loss"] == 0.5
    uri = object_store.uri("runs/b")
    assert RunDirectory(uri) == RunDirectory(RemotePath(uri))


def test_directory_of_a_finished_run_has_result_and_model(tmp_path):
    run = RunDirectory(tmp_path)
    assert not run.has_started()
    run.write_config(configs.with_overrides(configs.load("debug"), {"train.output": str(tmp_path)}))
    assert run.has_started()
    assert run.read_config().train.output is None  # it may be moved
    run.write_outcome({"steps": 3})
    run.write_result({"steps": 3})
    assert (run.has_outcome(), run.is_finished()) == (True, False)
    for path in (run.model, run.model.with_name("model.json")):
        path.touch()
    assert run.is_finished()
    assert run.read_result() == {"steps": 3}
    assert [path.name for path, _ in run.artifacts()] == ["model.json", "result.json"]
    run.delete_results()
    assert not run.has_outcome()
    with pytest.raises(FileNotFoundError):
        run.read_result()


def test_read_config_of_another_folder_raises_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run directory \(no config.yaml\): give the directory of a run$"):
        RunDirectory(tmp_path).read_config()


def test_faults_log_that_is_a_symbolic_link_is_not_appended_to(tmp_path):
    (tmp_path / "kept").touch()
    (tmp_path / "faults.log").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="symbolic link"):
        RunDirectory(tmp_path).add_faults(["x"])
    assert (tmp_path / "kept").read_text() == ""


def test_faults_added_later_are_appended(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_faults(["a"])
    run.add_faults(["b", "c"])
    assert (tmp_path / "faults.log").read_text() == "a\nb\nc\n"


def test_metrics_as_a_data_frame_are_a_row_for_each_step_with_nan_where_none_was_measured(tmp_path):
    run = RunDirectory(tmp_path)
    journal = run.journal("rank0")
    journal.metrics({"train/loss": 3.0}, 10)
    journal.metrics({"train/loss": 2.0, "eval/accuracy": 0.7}, 20)
    journal.close()
    frame = run.to_pandas()
    assert frame.index.name == "step"
    assert frame["train/loss"].to_dict() == {10: 3.0, 20: 2.0}
    assert frame["eval/accuracy"].isna().tolist() == [True, False]


@pytest.fixture
def stored(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run directory in an object store; this machine's working folders are in `state`."""
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: tmp_path / "state" / name)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_TRIES", 1000)  # on a machine under load a write takes longer than half of that
    monkeypatch.setattr(run_store, "_LOOK_SECONDS", 0.0)
    return RunDirectory(RemotePath(object_store.uri("runs/one")))


def test_directory_in_a_store_shares_its_messages_between_machines(stored: RunDirectory) -> None:
    other = pickle.loads(pickle.dumps(replace(stored, writer="rank0")))
    assert len({run.working for run in (stored, other, RunDirectory("s3://b/one"))}) == 3
    stored.request_stop()
    assert other.stop_requested()
    stored.clear_stop_request()
    assert not stored.stop_requested()
    other.record_hang("worker 1 hangs")
    other.record_hang("worker 0 hangs")
    assert stored.take_hang() == "worker 1 hangs"
    assert stored.take_hang() is None
    stored.add_restart("a node was lost")
    assert other.restarts() == ["a node was lost"]
    stored.write_faults(["first"])
    other.add_faults(["second"])
    assert (stored.path / "faults.log").read_text() == "first\nsecond\n"
    file = other.open_heartbeat(3)
    os.pwrite(file, b"beat", 0)
    with pytest.raises(OSError, match="No such object"):
        stored.read_heartbeat(3)
    other.share_heartbeat(3, file)
    os.close(file)
    assert stored.read_heartbeat(3) == b"beat"


def test_directory_in_a_store_delivers_journals_and_a_new_machine_continues_them(
    stored: RunDirectory, object_store: ObjectStore
) -> None:
    worker = replace(stored, writer="rank0")
    owned = pytest.raises(DataError, match=r"^train.output: s3:.* owns it, .* ends at")
    with stored.exclusive(), owned:
        assert stored.is_owned()
        with stored.exclusive():
            pass
    assert not stored.is_owned()
    assert stored.is_unused()
    stored.write_config(configs.load("debug"))
    with stored.delivering(), stored.session():
        with worker.delivering():
            journal = worker.worker_journal()
            journal.metrics({"train/loss": 4.0}, 1)
            journal.close()
        stored.journal("driver").close()
        assert stored.read_metrics()["train/loss"][0][:2] == (1, 4.0)
    assert not worker.working.exists()
    assert not stored.working.exists()
    assert stored.read_config().name == configs.load("debug").name
    with stored.delivering(), worker.delivering():
        assert stored.seconds() > 0
        assert worker.worker_journal().last_step == 1
    assert not stored.is_unused()
    assert not any(object_store.secret.encode() in content for content in object_store.files().values())


def test_directory_in_a_store_delivers_files_of_tensorboard_and_wandb_gradually(
    stored: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    class Seen(run_store.FolderMirror):
        def __init__(self, *args, **options) -> None:
            given.append(options["gradual"])
            super().__init__(*args, **options)

    monkeypatch.setattr(run_store, "FolderMirror", Seen)
    with stored.delivering():
        pass
    assert given == [("tensorboard", "wandb")]


def test_faults_in_a_store_are_appended_beside_the_training_and_those_of_the_controller_apart(
    stored: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each append read and uploaded the whole file, and of two processes the later one won."""
    log = stored.path / "faults.log"
    worker, controller = replace(stored, writer="rank0"), replace(stored, writer=CONTROLLER)
    (worker.working / "journal").mkdir(parents=True)
    (worker.working / "faults.log").write_text("of a run that was deleted\n")
    with worker.delivering():
        with monkeypatch.context() as patch:
            for name in ("read_text", "read_bytes", "upload"):
                patch.setattr(RemotePath, name, lambda *args: pytest.fail("the training loop asks the store"))
            worker.add_faults(["second"])
            RunDirectory(stored.path).add_faults(["third"])  # a checkpoint's, of the same process
        controller.add_faults(["a hang"])
    assert log.read_text() == "second\nthird\n"
    with worker.delivering():  # of a later session
        worker.add_faults(["fourth"])
    stored.add_faults(["fifth"])  # after the training
    assert log.read_text() == "second\nthird\nfourth\nfifth\n"
    assert (stored.path / "faults-controller.log").read_text() == "a hang\n"


def test_directory_in_a_store_that_another_driver_took_over_is_lost_and_nothing_is_delivered(
    stored: RunDirectory, object_store: ObjectStore
) -> None:
    values = {"id": "other", "host": "node7", "pid": 42, "space": "", "ends": time.time() + 60}
    with stored.exclusive(), stored.delivering():
        assert not stored.is_lost()
        write_json(stored.path / lease.LEASE, values)
        run_store._leases[str(stored)].renew()
        stored.journal("driver").params({"a": 1})
        with pytest.raises(TrainingStoppedError, match=r"^train.output: s3:.* another driver took it over"):
            run_interruptibly(lambda: time.sleep(3), stored, grace=0)
    assert set(object_store.files()) == {f"runs/one/{lease.LEASE}"}
    kept = (stored.working / "journal").is_dir()  # what could not be delivered
    assert (kept, stored.is_lost(), stored.is_owned()) == (True, False, True)
    write_json(stored.path / lease.LEASE, {**values, "ends": time.time() - 60})
    assert not stored.is_owned()


def test_model_of_a_directory_in_a_store_is_uploaded_and_fetched_as_an_artifact(stored: RunDirectory) -> None:
    with stored.new_model() as folder:
        write_file(folder / "model.json", b"{}")
        assert not stored.has_model()
        write_file(folder / "model.safetensors", b"weights")
    assert stored.has_model()
    assert [(path.name, path.read_bytes()) for path, _ in stored.artifacts()] == [("model.json", b"{}")]
    assert (stored.model_folder() / "model.safetensors").read_bytes() == b"weights"


def test_request_in_a_store_is_seen_by_every_look_until_it_is_withdrawn(
    stored: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_store, "_LOOK_SECONDS", 60.0)
    stored.request_stop()
    assert [stored.stop_requested(), stored.stop_requested()] == [True, True]
    stored.clear_stop_request()
    assert not stored.stop_requested()
    stored.request_stop()
    assert not stored.stop_requested()  # a look that finds nothing holds for a while


def test_request_in_a_store_that_does_not_answer_is_none(stored: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(self: RunDirectory, name: str) -> bool:
        raise StorageError("s3://runs: cannot be read after 7 tries")

    monkeypatch.setattr(RunDirectory, "_exists", no_answer)
    assert not stored.stop_requested()  # a training goes on


def test_run_in_a_store_that_was_deleted_leaves_nothing_to_the_next_one_of_its_name(stored: RunDirectory) -> None:
    assert isinstance(stored.path, RemotePath)
    with stored.delivering():
        stored.journal("driver").metrics({"a": 1.0}, 1)
    stored.journal("driver").metrics({"a": 2.0}, 2)
    (stored.working / "later").write_text("of a session that could not be delivered")
    stored.path.remove_tree()
    with stored.delivering():
        assert stored.read_metrics() == {}
        assert not (stored.working / "later").exists()


def test_synced_of_a_store_has_model_figures_and_what_is_written_for_other_programs(
    stored: RunDirectory, object_store: ObjectStore
) -> None:
    with stored.delivering():
        stored.journal("driver").close()
        for name in ("plots/loss.png", "tensorboard/events"):
            (stored.working / name).parent.mkdir()
            (stored.working / name).write_bytes(name.encode())
    stored.write_config(configs.load("debug"))
    with stored.new_model() as folder:
        write_file(folder / "model.json", b"{}")
        write_file(folder / "model.safetensors", b"weights")
    assert "runs/one/tensorboard/events" in object_store.files()
    with stored.synced() as working:
        assert (working / "plots/loss.png").read_bytes() == b"plots/loss.png"
        assert (working / "model.safetensors").read_bytes() == b"weights"
        with pytest.raises(DataError, match="owns it"), stored.synced():
            pass
        assert working.exists()


def test_working_folder_that_cannot_be_made_names_the_variable_that_moves_it(
    stored: RunDirectory, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written .*: set XDG_STATE_HOME"), stored.delivering():
        pass


def test_title_of_a_run_is_its_path_in_the_project_or_its_name_in_a_store(
    stored: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory(tmp_path / "runs" / "a").title == "a"
    assert RunDirectory(tmp_path / "demo" / "run").title == "demo/run"
    assert stored.title == "one"


def test_bytes_being_written_while_the_checkpoint_is_published_is_a_number(tmp_path, monkeypatch):
    """The folder is renamed between the two scans of a glob."""
    run = RunDirectory(tmp_path)
    writing = run.checkpoints / ".step_00000001.tmp"
    writing.mkdir(parents=True)
    (writing / "part").write_bytes(b"four")
    assert run.bytes_being_written() == 4

    def renamed(folder: Path, pattern: str) -> Iterator[Path]:
        yield writing / "part"
        raise FileNotFoundError(2, "No such file or directory", str(writing))

    monkeypatch.setattr(Path, "glob", renamed)
    assert run.bytes_being_written() == 4
