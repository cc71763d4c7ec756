"""A folder that differs from what was written is found corrupt, and the fault names the file."""

import json

import pytest

from rayface.models.digests import DIGESTS, digests_of, verify, write_digests


@pytest.fixture
def folder(tmp_path):
    for name, content in (("a", b"123"), ("b", b""), ("c", bytes(1000))):
        (tmp_path / name).write_bytes(content)
    write_digests(tmp_path, digests_of(tmp_path, ["a", "b", "c"]))
    return tmp_path


def test_verify_of_a_folder_as_it_was_written_finds_nothing(folder):
    (folder / "more").write_bytes(b"not ours")
    assert verify(folder) == []
    assert json.loads((folder / DIGESTS).read_text())["files"]["b"]["bytes"] == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "a").unlink(), "/a: is missing"),
        (lambda f: (f / "c").write_bytes(bytes(999)), "/c: has 999 bytes, 1,000 were written"),
        (lambda f: (f / "a").write_bytes(b"124"), "/a: has sha256"),
        (lambda f: (f / DIGESTS).unlink(), "digests.json: is missing"),
        (lambda f: (f / DIGESTS).write_text('{"files": {"a"'), "digests.json: cannot be read"),
        (lambda f: (f / DIGESTS).write_text("[]"), "digests.json: cannot be read"),
        (
            lambda f: (f / DIGESTS).write_text('{"files": {"a": {"bytes": 3}}}'),
            "digests.json: cannot be read: KeyError",
        ),
        (lambda f: ((f / "b").unlink(), (f / "b").mkdir()), "/b: "),
    ],
)
def test_verify_of_a_corrupt_folder_names_file_and_fault(folder, damage, said):
    damage(folder)
    (fault,) = verify(folder)
    assert said in fault
    assert str(folder) in fault
