"""Files that appear whole or not at all, and that nothing else writes them."""

import json
import re
from pathlib import Path

import pytest

import rayface
from rayface import files


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
    # Scratch of a check that deletes it, a folder that is renamed when it is whole, and the kernel's own file.
    allowed = {"training/preflight.py", "data/scan_cache.py", "bench/prune.py"}
    root = Path(rayface.__file__).parent
    writers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\.write_(text|bytes)\((?!self)", path.read_text())
    }
    assert writers <= allowed
