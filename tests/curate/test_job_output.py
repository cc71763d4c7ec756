"""The output of a curation job in an object store: results appear together, and work is there until then."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayface.curate.job_output import WORK, job_output
from rayface.storage import DataError, RemotePath, lease

JOB = {"method": "random"}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "state"))
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.2)
    return tmp_path / "state"


def run(root: str, *, job: dict[str, str] = JOB, stop: type[BaseException] | None = None) -> bool:
    """Do a job that writes work and results; return whether it found its work."""
    with job_output(root, job, ".job.json", key="prune.out") as output:
        found = (output.work / "runs" / "0").exists()
        with (output.work / "runs" / "0").writing() as stream:
            stream.write(b"run")
        for name in ("prune.json", "core_set.parquet", "plots/a.png"):
            (output.folder / name).parent.mkdir(exist_ok=True)
            (output.folder / name).write_text(name)
        if stop is not None:
            raise stop
        output.finish("prune.json")
    return found


def test_job_output_on_a_disk_is_the_folder_itself(tmp_path: Path) -> None:
    assert not run(str(tmp_path / "out"))
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert names == {".job.json", ".lock", "core_set.parquet", "plots", "plots/a.png", "prune.json"}


def test_job_output_abandoned_is_free_for_another_job(object_store: Any, tmp_path: Path) -> None:
    for root in (str(tmp_path / "out"), object_store.uri("core")):
        with job_output(root, JOB, ".job.json", key="prune.out") as output:
            with (output.work / "runs" / "0").writing() as stream:
                stream.write(b"run")
            (output.folder / "journal").mkdir()
            (output.folder / "journal" / "driver.jsonl").write_text("{}\n")
            output.abandon(".job.json")
        assert not run(root, job={"method": "herding"})


def test_job_output_in_a_store_resumes_on_another_node_and_has_the_results_after_the_end_only(
    object_store: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = object_store.uri("core")
    with pytest.raises(RuntimeError):
        run(uri, stop=RuntimeError)
    assert set(object_store.files()) == {"core/.job.json", f"core/{WORK}/job", f"core/{WORK}/runs/0"}
    with monkeypatch.context() as other:
        for variable in ("XDG_STATE_HOME", "RAYFACE_CACHE"):
            other.setenv(variable, str(state / "other"))
        assert run(uri)
    assert set(object_store.files()) == {
        f"core/{name}" for name in (".job.json", "core_set.parquet", "plots/a.png", "prune.json")
    }
    left = {path.name for path in state.rglob("*") if path.is_file()}
    assert left == {"0", "prune.json", "core_set.parquet", "a.png"}  # of the first node, which are not taken up
    assert not run(object_store.uri("again"))
    assert {path.name for path in state.rglob("*") if path.is_file()} == left


def test_job_output_in_a_store_never_takes_up_the_work_of_another_job(object_store: Any) -> None:
    uri = object_store.uri("core")
    with pytest.raises(RuntimeError):
        run(uri, stop=RuntimeError)
    with pytest.raises(DataError, match=r"was started with method random, this job has herding"):
        run(uri, job={"method": "herding"})
    (RemotePath(uri) / ".job.json").unlink()
    with pytest.raises(DataError, match=r"is not empty \(\.work\)"):
        run(uri, job={"method": "herding"})
    (RemotePath(uri) / WORK).remove_tree()
    assert not run(uri, job={"method": "herding"})


def test_job_output_in_a_store_with_a_corrupt_name_of_its_copies_deletes_nothing(
    object_store: Any, state: Path
) -> None:
    """Nodes delete the folder of this name."""
    (state / "work").mkdir(parents=True)
    (state / "kept").write_text("")
    object_store.put("core/.job.json", json.dumps(JOB).encode())
    for name in ("", "../", str(state), "a" * 31):
        object_store.put(f"core/{WORK}/job", name.encode())
        with pytest.raises(DataError, match=r"/core/\.work/job\S*: is corrupt: delete s3://"):
            run(object_store.uri("core"))
    assert (state / "kept").exists()


def test_job_output_in_a_store_uploads_the_result_last(object_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[str] = []
    monkeypatch.setattr("rayface.curate.job_output.upload", lambda source, target: uploaded.append(source.name))
    run(object_store.uri("core"))
    assert uploaded == ["core_set.parquet", "a.png", "prune.json"]


def test_job_output_in_a_store_of_a_running_job_is_refused(object_store: Any) -> None:
    uri = object_store.uri("core")
    with (
        job_output(uri, JOB, ".job.json", key="prune.out"),
        pytest.raises(DataError, match=r"^prune.out: s3://.*owns it"),
    ):
        run(uri)
