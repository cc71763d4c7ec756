"""Tars that are not read (compressed, in sub-folders, no tars at all): refused or named, never ignored."""

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from rayface.data import listing
from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.writer import write_dataset
from rayface.storage import DataError


def tar_bytes(prefix: str = "k") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in ((f"{prefix}.jpg", b"\xff\xd8" + b"x" * 99), (f"{prefix}.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(tar_bytes())
    return tmp_path / "set"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(folder, max_corrupt_fraction=1)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["b.tar.gz", "b.TGZ", "b.tar.zst", "b.tar.xz", "b.tbz2", "deep/er/b.tar", "sub/b.tgz"])
def test_open_dataset_with_a_tar_that_is_not_read_is_refused(bare: Path, name: str) -> None:
    (bare / name).parent.mkdir(parents=True, exist_ok=True)
    (bare / name).write_bytes(gzip.compress(tar_bytes("b")))
    refused(bare, name, f"rayface convert --from webdataset {bare} OUT")
    report = check(bare)
    assert report.num_images == 1
    assert [(fault.shard, fault.kind) for fault in report.faults] == [(f"{bare}/{name}", "not read")]
    assert f"rayface convert --from webdataset {bare} OUT" in report.faults[0].reason


def test_open_dataset_with_tars_only_in_sub_folders_names_them(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").write_bytes(tar_bytes())
    refused(tmp_path, "x/a.tar and 1 more", "sub-folder")
    with pytest.raises(DataError, match=r"x/a\.tar and 1 more"):
        check(tmp_path)


def test_tar_with_an_upper_case_suffix_is_a_shard(bare: Path) -> None:
    (bare / "B.TAR").write_bytes(tar_bytes("b"))
    assert open_dataset(bare).num_images == 2


def test_other_files_next_to_shards_are_ignored(bare: Path) -> None:
    for name in ("a.tar.md5", "a.tar.idx", "README.gz", ".old.tar.gz"):
        (bare / name).write_bytes(b"x")
    (bare / ".cache").mkdir()
    (bare / ".cache" / "x.tar").write_bytes(tar_bytes())
    (bare / ".old.tar.gz").unlink()
    write_dataset(
        bare / "pruned", [("k", 0, b"\xff\xd8")], name="other", identities=["a"], image_size=None, layout="shuffled"
    )  # a dataset of its own
    assert open_dataset(bare).num_images == 1
    assert check(bare).ok


def test_dataset_with_a_manifest_reports_tars_that_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, [("k", 0, b"\xff\xd8")], name="set", identities=["a"], image_size=None)
    (folder / "more.tar.gz").write_bytes(gzip.compress(tar_bytes()))
    (folder / "sub").mkdir()
    (folder / "sub" / "b.tar").write_bytes(tar_bytes())
    opened = open_dataset(folder, max_corrupt_fraction=0)
    assert [(fault.shard, fault.kind) for fault in opened.faults] == [(f"{folder}/more.tar.gz", "not read")]
    named = {fault.shard: fault.kind for fault in check(folder).faults}
    assert named == {f"{folder}/more.tar.gz": "not read", f"{folder}/sub/b.tar": "not read"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(tar_bytes()), "not a tar but gzip"),
        (lzma.compress(tar_bytes()), "not a tar but xz"),
        (bz2.compress(tar_bytes()), "not a tar but bzip2"),
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>" * 500, "no tar member in 7500 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no tar member"),
    ],
)
def test_shard_that_is_no_tar_is_refused(bare: Path, content: bytes, reason: str) -> None:
    (bare / "b.tar").write_bytes(content)
    refused(bare, f"{bare}/b.tar", reason, "remove it")
    report = check(bare)
    assert [(fault.shard, fault.kind) for fault in report.faults] == [(f"{bare}/b.tar", "not a tar")]
    assert reason in report.faults[0].reason


def test_empty_archive_and_odd_names_are_accepted(bare: Path) -> None:
    (bare / "empty.tar").write_bytes(bytes(10240))
    (bare / "b.tar").write_bytes(tar_bytes("BZh9"))  # begins as bzip2 does
    assert open_dataset(bare, max_corrupt_fraction=0).num_images == 2


def test_links_to_folders_are_followed_once(bare: Path, tmp_path: Path) -> None:
    (bare / "loop").symlink_to(bare)
    assert open_dataset(bare).num_images == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.tar").write_bytes(tar_bytes("b"))
    for name in ("x", "y"):
        (bare / name).symlink_to(tmp_path / "elsewhere")
    assert [fault.shard for fault in check(bare).faults] == [f"{bare}/x/b.tar"]


def test_search_in_sub_folders_is_bounded(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extracted set with a folder for each of a million people may lie beside the tars."""
    for i in range(20):
        (bare / "people" / str(i)).mkdir(parents=True)
    files, folders = listing.list_entries(str(bare))
    listed: list[str] = []
    list_entries = listing.list_entries
    monkeypatch.setattr(listing, "list_entries", lambda path: listed.append(path) or list_entries(path))
    assert listing.tars_not_read(str(bare), files, folders, most_folders=10) == []
    assert len(listed) == 10
