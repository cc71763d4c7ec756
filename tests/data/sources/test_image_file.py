"""One image file of a folder: what is read, and what is a fault."""

import os
from pathlib import Path

import pytest

from rayface.data.shards.samples import Fault
from rayface.data.sources import image_file
from rayface.data.sources.base import SourceImage
from rayface.data.sources.image_file import has_image_suffix, printable, read_image_file
from tests.data.scanned_tars import picture


def test_read_image_file_gives_its_bytes_and_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0").write_bytes(picture(0, "jpg"))
    found = read_image_file(str(tmp_path), "a/0")
    assert found == SourceImage(picture(0, "jpg"), str(tmp_path), "a/0")


def test_read_image_file_that_is_none_is_a_fault_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "text").write_text("text")
    (root / "large.jpg").write_bytes(picture(0, "jpg"))
    (tmp_path / "secret.jpg").write_bytes(picture(0, "jpg"))
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    monkeypatch.setattr(image_file, "_MAX_BYTES", 100)
    for name, kind in (
        ("text", "other file"),
        ("large.jpg", "unreadable"),
        ("link.jpg", "link"),
        ("missing.jpg", "unreadable"),
    ):
        found = read_image_file(str(root), name)
        assert isinstance(found, Fault)
        assert (found.kind, found.member) == (kind, name)


def test_names_of_any_bytes_are_printable_and_known_by_their_suffix() -> None:
    assert printable(os.fsdecode(b"a\xff")) == "a\\udcff"
    assert [has_image_suffix(name) for name in ("a.JPG", "a.jp2", "a.txt", "jpg")] == [True, True, False, True]
