"""Files appear whole or not at all; no other module writes or locks them."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rayface
from rayface import files
from rayface.storage import DataError


def test_write_json_interrupted_leaves_the_former_file(tmp_path, monkeypatch):
    path = files.write_json(tmp_path / "result.json", {"steps": 1})
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_syncs_the_file_before_its_name_and_the_folder_after_it(tmp_path, monkeypatch):
    events = []
    fsync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr("os.fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr("os.replace", lambda *names: (events.append("replace"), replace(*names)))
    files.write_json(tmp_path / "result.json", {})
    assert events == ["fsync", "replace", "fsync"]


def test_publish_gives_a_finished_file_or_folder_its_name(tmp_path):
    (tmp_path / ".a.tmp").write_text("a")
    files.publish(tmp_path / ".a.tmp", tmp_path / "a")
    (tmp_path / ".b.tmp").mkdir()
    files.publish(tmp_path / ".b.tmp", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_no_module_writes_files_that_a_crash_can_leave_half_written():
    # Scratch of a check that deletes it, a folder that is renamed when it is whole, the data of benchmarks, and files
    # of the kernel.
    benchmarks = {"bench/simulated.py", "bench/source_files.py", "bench/process_tree.py"}
    allowed = {"training/preflight.py", "data/scan_cache.py", "fork_server/protocol.py", *benchmarks}

    root = Path(rayface.__file__).parent
    writers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\.write_(text|bytes)\((?!self)", path.read_text())
    }
    assert writers <= allowed


def test_exclusive_folder_held_by_another_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "out"
    with files.exclusive_folder(folder, "--out: out"):
        with pytest.raises(DataError) as refused, files.exclusive_folder(folder, "--out: out"):
            pass
        assert str(refused.value) == "--out: out: another process owns it: wait for it, or stop it first"
    with files.exclusive_folder(folder, "--out: out"):
        assert [path.name for path in folder.iterdir()] == [files.LOCK]


def test_exclusive_folder_whose_owner_was_killed_is_free(tmp_path):
    own = (
        "import contextlib, sys, time; from pathlib import Path; from rayface.files import exclusive_folder\n"
        "with exclusive_folder(Path(sys.argv[1]), 'out'): print('owned', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", own, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"owned\n"
        with pytest.raises(DataError, match="another process"), files.exclusive_folder(tmp_path, "out"):
            pass
        owner.kill()
        owner.wait()
        with files.exclusive_folder(tmp_path, "out"):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_exclusive_folder_on_a_disk_without_locks_is_entered_with_one_warning(tmp_path, monkeypatch, messages, number):
    def refuse(fd, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(files, "_warned", [])
    for name in ("out", "other"):
        with files.exclusive_folder(tmp_path / name, name):
            assert (tmp_path / name).is_dir()
    (line,) = messages()
    assert line.startswith(f"{tmp_path / 'out'}: its file system has no locks (no locks): nothing prevents a second")


def test_exclusive_folder_whose_lock_is_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "other")
    refusal = pytest.raises(
        DataError, match=r"^train.output: a: cannot be written: its lock is a symbolic link: choose"
    )
    with refusal, files.exclusive_folder(tmp_path / "out", "train.output: a"):
        pass
    assert not (tmp_path / "other").exists()


def test_exclusive_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    refusal = pytest.raises(DataError, match=r"^train.output: a: cannot be written: .*: choose another directory$")
    with refusal, files.exclusive_folder(tmp_path / "file" / "a", "train.output: a"):
        pass


def test_next_numbered_folder_counts_only_folders_of_the_name(tmp_path):
    for name in ("a-001", "a-012", "a-x", "a-b-020", "ab-030"):
        (tmp_path / name).mkdir()
    assert files.next_numbered_folder(tmp_path, "a").name == "a-013"
    assert files.next_numbered_folder(tmp_path, "[a]").name == "[a]-001"
    assert sorted(files.numbered_folders(tmp_path, "a")) == [1, 12]


def test_only_the_module_files_locks():
    root = Path(rayface.__file__).parent
    assert not [path for path in root.rglob("*.py") if re.search(r"\bfcntl\b", path.read_text())]
    assert [path.name for path in root.rglob("*.py") if re.search(r"\bFileLock\(", path.read_text())] == ["files.py"]
