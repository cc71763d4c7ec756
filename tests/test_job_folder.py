"""Exclusive ownership of a job folder: made, resumed by the same job, refused to others."""

from pathlib import Path

import pytest

from rayface.job_folder import exclusive_job_folder
from rayface.storage import DataError

JOB = {"model": "a", "size": 8}


def own(root: Path, job: dict[str, object], **options: list[str]) -> None:
    with exclusive_job_folder(str(root), job, ".job.json", key="job.out", **options):
        (root / "part").touch()


def test_job_folder_of_the_same_job_is_resumed_and_unfinished_files_are_deleted(tmp_path):
    own(tmp_path / "out", JOB)
    (tmp_path / "out" / ".part.0123abcd.tmp").touch()
    own(tmp_path / "out", JOB)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".job.json", ".lock", "part"]


def test_job_folder_keeps_no_unfinished_files_of_a_worker_that_was_killed_in_a_finished_job(tmp_path):
    with exclusive_job_folder(str(tmp_path), JOB, ".job.json", key="job.out"):
        (tmp_path / ".part.0123abcd.tmp").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".job.json", ".lock"]


def test_job_folder_is_freed_of_unfinished_files_in_its_own_folders_only(tmp_path):
    own(tmp_path, JOB)
    for name in ("plots", "other", "proxy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".a.png.0123abcd.tmp").touch()
    (tmp_path / "other" / ".lock").touch()
    own(tmp_path, JOB, beside=["proxy"])
    left = {path.parent.name for path in tmp_path.glob("*/.a.png.*")}
    assert left == {"other", "proxy"}


def test_job_folder_of_another_job_is_refused_with_the_key_that_differs(tmp_path):
    own(tmp_path, JOB)
    with pytest.raises(
        DataError, match=r"^job\.out: .*: was started with size 8, this job has 9: choose another directory$"
    ):
        own(tmp_path, {**JOB, "size": 9})


def test_job_folder_of_a_job_that_differs_inside_a_group_is_refused_with_the_setting(tmp_path):
    own(tmp_path, {**JOB, "clean": {"outliers": 0.2, "merge": True}})
    with pytest.raises(DataError, match=r"was started with clean\.merge True, this job has False: choose another"):
        own(tmp_path, {**JOB, "clean": {"outliers": 0.2, "merge": False}})
    with pytest.raises(DataError, match=r"was started with clean\.merge True, which this job lacks: set it"):
        own(tmp_path, {**JOB, "clean": {"outliers": 0.2}})


def test_job_folder_of_a_job_with_one_setting_more_is_refused(tmp_path):
    own(tmp_path / "out", {**JOB, "merge": True})
    remedy = r"go on with the version that started it, or choose another directory$"
    with pytest.raises(DataError, match=rf"was started with merge True, which this job lacks: set it, {remedy}"):
        own(tmp_path / "out", JOB)
    own(tmp_path / "other", JOB)
    with pytest.raises(DataError, match=rf"was started without merge, this job has True: unset it, {remedy}"):
        own(tmp_path / "other", {**JOB, "merge": True})


@pytest.mark.parametrize("text", [b"", b"{\n", b"\xff", b"[1]"])
def test_job_folder_with_a_corrupt_job_file_is_refused_in_one_line(text, tmp_path):
    own(tmp_path, JOB)
    (tmp_path / ".job.json").write_bytes(text)
    with pytest.raises(DataError, match=r"^job\.out: .*: \.job\.json: .+: must be a JSON object: choose .*$") as raised:
        own(tmp_path, JOB)
    assert "\n" not in str(raised.value)
    assert (tmp_path / ".job.json").read_bytes() == text


def test_job_folder_with_foreign_files_is_refused_unless_they_are_known(tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(DataError, match=r"^job\.out: .*: is not empty \(notes\): choose another directory$"):
        own(tmp_path, JOB)
    own(tmp_path, JOB, beside=["notes"])


def test_job_folder_of_a_running_job_is_refused(tmp_path):
    with (
        exclusive_job_folder(str(tmp_path), JOB, ".job.json", key="job.out"),
        pytest.raises(DataError, match=r"another process owns it: wait for it, or stop it first$"),
    ):
        own(tmp_path, JOB)


def test_job_folder_keeps_no_credentials(tmp_path):
    own(tmp_path, {"data": "s3://key:secret@bucket/set"})
    assert "secret" not in (tmp_path / ".job.json").read_text()
    own(tmp_path, {"data": "s3://key:secret@bucket/set"})


def test_job_folder_in_a_store_is_owned_by_one_process_and_freed_of_unfinished_uploads(object_store, monkeypatch):
    monkeypatch.setattr("rayface.storage.lease.SETTLE_SECONDS", 0.5)
    root = object_store.uri("out")
    with exclusive_job_folder(root, JOB, ".job.json", key="job.out"):
        object_store.put("out/.part.0123abcd.tmp", b"half")
        with (
            pytest.raises(DataError, match=r"^job\.out: s3://\*\*\*@.*owns it, and its lease ends at"),
            exclusive_job_folder(root, JOB, ".job.json", key="job.out"),
        ):
            pass
    with exclusive_job_folder(root, JOB, ".job.json", key="job.out"):
        assert set(object_store.files()) == {"out/.job.json", "out/.lease.json"}
    assert set(object_store.files()) == {"out/.job.json"}
