"""The folder source: which files are images, which folders are identities, what is left out."""

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources.folder import FolderSource
from rayface.storage import DataError


def convert_folder(src: Path, out: Path, **settings: Any) -> Dataset:
    return convert(FolderSource(src), out, ConvertSettings(**settings))


def picture(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(path.suffix.lower(), image)[1].tobytes()
    path.write_bytes(data)
    return data


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three identities with five images each."""
    for n, name in enumerate(("Ann Lee", "bob", "cy")):
        for i in range(5):
            save(tmp_path / "people" / name / f"{i}.jpg", picture(10 * n + i))
    return tmp_path / "people"


def test_folder_with_hidden_and_tool_folders_counts_them_as_left_out(people: Path, tmp_path: Path) -> None:
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX/bob", "bob/.thumbnails", "cy/@eaDir/0.jpg", "dee/.git"):
        save(people / folder / "0.jpg", picture(99))
    save(people / "bob" / "._0.jpg", picture(99))
    (people / "empty").mkdir()
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.identities == ("Ann Lee", "bob", "cy")
    assert dataset.num_images == 15
    assert [(f.kind, f.member, f.num_lost) for f in dataset.faults] == [
        ("hidden", ".ipynb_checkpoints", 1),
        ("identity", "dee", 1),
        ("identity", "empty", 1),
        ("hidden", None, 6),
    ]
    assert dataset.faults[-1].reason == "6 more of kind 'hidden'"


def test_folder_with_odd_suffixes_recognises_images_by_content(people: Path, tmp_path: Path) -> None:
    wanted = {}
    names = {"a.tif": ".tif", "b.gif": ".gif", "c.jfif": ".jpg", "IMG 1": ".jpg", "d.jpg": ".png", "e.7": ".ppm"}
    keys = ["bob_a", "bob_b", "bob_c", "bob_IMG_1", "bob_d", "bob_e_7"]
    for n, (key, (name, suffix)) in enumerate(zip(keys, names.items(), strict=True)):
        data = save(tmp_path / f"x{suffix}", picture(50 + n))
        (people / "bob" / name).write_bytes(data)
        wanted[key] = decode_image(data).astype(int)
    for i in range(4):
        (people / "bob" / f"{i}.json").write_text("{}")
    os.mkfifo(people / "cy" / "pipe.jpg")  # to read it would wait for ever
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.num_images == 15 + 6
    samples = {s.key: s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)}
    for key, image in wanted.items():
        assert np.abs(decode_image(samples[key].jpeg).astype(int) - image).mean() < 16  # of others: 70
    left: Counter[str] = Counter()
    for fault in dataset.faults:
        left[fault.kind] += fault.num_lost
    assert left == {"other file": 4, "special file": 1}


def test_folder_names_in_two_unicode_forms_are_one_identity(people: Path, tmp_path: Path) -> None:
    for n, form in enumerate(("Zo\u00eb", "Zoe\u0308")):
        save(people / form / f"{n}.jpg", picture(n))
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.identities == ("Ann Lee", "Zo\u00eb", "bob", "cy")
    assert np.bincount(dataset.index.label).tolist() == [5, 2, 5, 5]


def test_folder_links_that_lead_out_are_not_followed(people: Path, tmp_path: Path) -> None:
    save(tmp_path / "secret" / "x.jpg", picture(99))
    os.symlink(tmp_path / "secret" / "x.jpg", people / "bob" / "link.jpg")
    os.symlink(tmp_path / "secret", people / "eve")
    save(tmp_path / "people-2" / "x.jpg", picture(98))
    os.symlink(tmp_path / "people-2", people / "fay")
    os.symlink(people, people / "cy" / "loop")
    os.symlink(people / "cy" / "0.jpg", people / "cy" / "inside.jpg")
    os.symlink(people / "cy", people / "zoe")
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.num_images == 16
    assert dataset.identities == ("Ann Lee", "bob", "cy")
    assert sorted((fault.kind, str(fault.member)) for fault in dataset.faults) == [
        ("alias", "cy/loop"),
        ("alias", "zoe"),
        ("link", "bob/link.jpg"),
        ("link", "eve"),
        ("link", "fay"),
    ]


@pytest.mark.parametrize(("target", "fails"), [("bob", False), ("../out", True), (".store", True), ("none", True)])
def test_folder_with_a_linked_identity_fails_strictly_if_its_images_are_lost(
    people: Path, tmp_path: Path, target: str, fails: bool
) -> None:
    for folder in (tmp_path / "out", people / ".store"):
        save(folder / "x.jpg", picture(99))
    os.symlink(target, people / "eve")
    expected = pytest.raises(DataError, match=r"eve.*symbolic link") if fails else contextlib.nullcontext()
    with expected:
        assert convert_folder(people, tmp_path / "set", max_corrupt_fraction=0).num_images == 15


def test_folder_that_cannot_be_listed_is_lost(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refused(folder: str) -> Any:
        if folder.endswith("bob"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"1 of 11 images cannot be read .*bob.*cannot be listed"):
        convert_folder(people, tmp_path / "out", max_corrupt_fraction=0)


def test_folder_paths_that_give_one_key_are_numbered(tmp_path: Path) -> None:
    for n, path in enumerate(("a/b.c/x.1.jpg", "a/b_c/x_1.jpg", "a/b_c/x_1.png", "ü/1.jpg")):
        save(tmp_path / "in" / path, picture(n))
    save(tmp_path / "in" / "n" / "bad.jpg", picture(9))
    os.rename(tmp_path / "in" / "n" / "bad.jpg", os.fsencode(tmp_path / "in" / "n") + b"/bad\xff\n.jpg")
    dataset = convert_folder(tmp_path / "in", tmp_path / "out")
    assert sorted(dataset.keys()) == ["a_b_c_x_1", "a_b_c_x_1-2", "a_b_c_x_1-3", "n_bad__", "ü_1"]


def test_folder_of_many_identities_is_listed_in_parts(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FolderSource(people)
    source.prepare("")
    whole = source.list_images(0).images
    monkeypatch.setattr("rayface.data.sources.folder._PART", 1)
    assert source.parts() == ["Ann Lee", "bob", "cy"]
    assert pa.concat_tables(source.list_images(part).images for part in range(3)).equals(whole)


def test_folder_by_identity_keeps_two_unicode_forms_of_a_name_together(people: Path, tmp_path: Path) -> None:
    for n, name in enumerate(("Zoe\u0308", "Zoz", "Zo\u00eb")):  # in the order of their bytes
        save(people / name / f"{n}.jpg", picture(n))
    dataset = convert(FolderSource(people), tmp_path / "out", ConvertSettings(layout="by_identity"))
    assert dataset.index.label.tolist() == sorted(dataset.index.label.tolist())


def test_folder_of_1500_levels_is_read_to_its_end(people: Path) -> None:
    levels = [str(people / "deep" / "d")]
    (people / "deep").mkdir()
    for _ in range(1500):
        os.mkdir(levels[-1])
        levels.append(f"{levels[-1]}/d")
    save(Path(levels[-1]).with_name("a.png"), picture(1))
    source = FolderSource(people)
    source.prepare("")
    try:
        found = source.list_images(0).images["path"].to_pylist()
    finally:
        os.remove(f"{levels[-2]}/a.png")
        for level in reversed(levels[:-1]):  # rmtree is recursive
            os.rmdir(level)
    assert b"deep/" + b"d/" * 1500 + b"a.png" in found
