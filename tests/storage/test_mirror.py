"""A folder delivered to an object store: whole lines, whole files, nothing twice."""

from pathlib import Path

import pytest

from rayface.storage import DataError, FolderMirror, RemotePath, Segments, mirror
from tests.conftest import ObjectStore


@pytest.fixture
def remote(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    monkeypatch.setattr(mirror, "SEGMENT_BYTES", 10)
    return RemotePath(object_store.uri("run"))


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_segments_deliver_complete_lines_and_a_reader_follows(remote: RemotePath, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    writer, reader = Segments(ours, remote / "journal"), Segments(theirs, remote / "journal")
    reader.pull()
    for text, whole in (("1234\n12", "1234\n"), ("34\n", "1234\n1234\n"), ("x" * 25 + "\n", None), ("half", None)):
        append(ours, text)
        writer.push()
        reader.pull()
        assert theirs.read_text() == (whole or "1234\n1234\n" + "x" * 25 + "\n")
    assert list((remote / "journal").files()) == ["000000", "000001", "000002", "000003"]


@pytest.mark.parametrize(
    ("local", "kept"), [("ab\ncd\nef\n", "ab\ncd\nef\n"), ("ab\nxx\nef\n", "ab\ncd\n"), ("", "ab\ncd\n")]
)
def test_segments_restore_keeps_a_local_journal_only_if_it_continues_the_stored_one(
    remote: RemotePath, tmp_path: Path, local: str, kept: str
) -> None:
    append(tmp_path / "a.jsonl", "ab\ncd\n")
    Segments(tmp_path / "a.jsonl", remote / "journal").push()
    append(tmp_path / "b.jsonl", local)
    journal = Segments(tmp_path / "b.jsonl", remote / "journal")
    journal.restore()
    assert (tmp_path / "b.jsonl").read_text() == kept
    append(tmp_path / "b.jsonl", "last\n")
    journal.push()
    Segments(tmp_path / "c.jsonl", remote / "journal").restore()
    assert (tmp_path / "c.jsonl").read_text() == f"{kept}last\n"


def test_mirror_delivers_changed_files_at_the_end_and_restores_them_elsewhere(
    remote: RemotePath, tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    append(remote_journal := tmp_path / "rank0.jsonl", "of rank 0\n")
    Segments(remote_journal, remote / "journal/rank0.jsonl").push()
    with FolderMirror(here, remote, pulled=["journal/rank0.jsonl"]) as delivered:
        append(here / "journal" / "driver.jsonl", "of the driver\n")
        append(here / "journal" / "tracking.json", "{}")
        append(here / ".hidden", "x")
        delivered.deliver()
        append(here / "report.html", "page")
    assert (here / "journal" / "rank0.jsonl").read_text() == "of rank 0\n"
    names = sorted(name.removeprefix("run/") for name in object_store.files())
    journals = [f"journal/{name}.jsonl/00000{part}" for name in ("driver", "rank0") for part in range(2)]
    assert names == sorted(
        [*[n for n in journals if n != "journal/rank0.jsonl/000001"], "journal/tracking.json", "report.html"]
    )
    written: list[str] = []
    monkeypatch.setattr(RemotePath, "upload", lambda path, data: written.append(path.name))
    delivered.deliver()
    assert written == []
    monkeypatch.undo()
    FolderMirror(there, remote).restore("journal")
    assert (there / "journal" / "driver.jsonl").read_text() == "of the driver\n"
    assert (there / "journal" / "tracking.json").read_text() == "{}"


def test_mirror_whose_store_fails_keeps_the_files_with_a_warning(
    s3_server: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append(tmp_path / "a.json", "{}")
    with FolderMirror(tmp_path, RemotePath(s3_server.uri("no-such-bucket/run").replace("@/", "@"))):
        pass
    assert f"it is kept in {tmp_path}" in caplog.text
    assert s3_server.secret not in caplog.text
    assert (tmp_path / "a.json").read_text() == "{}"


def test_mirror_uploads_a_large_file_of_a_gradual_folder_a_bounded_number_of_times_and_others_at_once(
    remote: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "DELIVERY_SECONDS", 1e6)
    sizes: dict[str, list[int]] = {"events": [], "faults.log": []}
    upload = RemotePath.upload
    monkeypatch.setattr(RemotePath, "upload", lambda to, data: (sizes[to.name].append(len(data)), upload(to, data)))
    files = [tmp_path / "tensorboard" / "events", tmp_path / "faults.log"]
    with FolderMirror(tmp_path, remote, gradual=["tensorboard"]) as delivered:
        for _ in range(300):
            for file in files:
                append(file, "12345")
            delivered.deliver()
    assert sizes["events"][-1] == 1500
    assert sum(sizes["events"]) < 12 * 1500
    assert sizes["faults.log"] == list(range(5, 1501, 5))
    assert (remote / "tensorboard" / "events").read_bytes() == files[0].read_bytes()


def test_mirror_delivers_only_the_named_parts_and_nothing_hidden(
    remote: RemotePath, tmp_path: Path, object_store: ObjectStore
) -> None:
    for name in (
        "journal/a.json",
        "plots/b.png",
        "faults.log",
        "journal/.locks/c.json",
        "journal/.d.json.0123abcd.tmp",
    ):
        append(tmp_path / name, "x")
    FolderMirror(tmp_path, remote, only=["journal", "faults.log"]).deliver()
    assert sorted(object_store.files()) == ["run/faults.log", "run/journal/a.json"]


def test_mirror_of_a_folder_that_another_process_owns_delivers_and_fetches_nothing(
    remote: RemotePath, tmp_path: Path, object_store: ObjectStore
) -> None:
    append(tmp_path / "a.json", "{}")
    with (
        pytest.raises(DataError, match="another process owns it"),
        FolderMirror(tmp_path, remote, fenced=lambda: True) as fenced,
    ):
        fenced.deliver()
    assert not fenced.delivered
    assert object_store.files() == {}
    with FolderMirror(tmp_path, remote) as own:
        pass
    assert own.delivered


def test_mirror_does_not_send_back_what_it_has_fetched_until_it_changes(
    remote: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (remote / "sub/a.json").upload(b"{}")
    mirrored = FolderMirror(tmp_path, remote)
    assert mirrored.fetch("sub/a.json")
    assert not mirrored.fetch("sub/b.json")
    assert (tmp_path / "sub" / "a.json").read_text() == "{}"
    written: list[bytes] = []
    monkeypatch.setattr(RemotePath, "upload", lambda path, data: written.append(data))
    mirrored.deliver()
    append(tmp_path / "sub" / "a.json", " ")
    mirrored.deliver()
    assert written == [b"{} "]


def test_fetched_journals_are_those_of_the_folder_whole_or_in_segments(remote: RemotePath, tmp_path: Path) -> None:
    append(tmp_path / "a.jsonl", "12345678\n12345\n")
    Segments(tmp_path / "a.jsonl", remote / "a.jsonl").push()
    (remote / "b.jsonl").upload(b"whole\n")
    (remote / "tracking.json").upload(b"{}")
    with mirror.fetched_journals(remote) as folder:
        found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"a.jsonl": "12345678\n12345\n", "b.jsonl": "whole\n"}
