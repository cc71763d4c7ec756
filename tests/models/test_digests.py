"""A folder that is not what was written is found out, and the reason names the file."""

import json

import pytest

from rayface.models.digests import DIGESTS, digests_of, verify, write_digests


@pytest.fixture
def folder(tmp_path):
    for name, content in (("a", b"123"), ("b", b""), ("c", bytes(1000))):
        (tmp_path / name).write_bytes(content)
    write_digests(tmp_path, digests_of(tmp_path, ["a", "b", "c"]))
    return tmp_path


def test_what_was_written_is_whole(folder):
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
def test_every_damage_is_named(folder, damage, said):
    damage(folder)
    (fault,) = verify(folder)
    assert said in fault
    assert str(folder) in fault
