"""Lists of image files with labels: every kind of line, parts, and what is left out."""

import os
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import listed_files, open_source
from rayface.data.sources.listed_files import ListSource
from rayface.storage import DataError, write_bytes
from tests.conftest import ObjectStore

JPEG = [
    simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for seed in range(4)
]
PATHS = ["a/0.jpg", "a/1.jpg", "b/0.jpg", "c d/0.jpg"]
LABELS = [7, 7, 3, 9]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for path, data in zip(PATHS, JPEG, strict=True):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    return tmp_path / "in"


def samples(dataset: Dataset) -> dict[str, tuple[str | int, bytes]]:
    read = [s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)]
    names = dataset.identities
    return {s.key: (names[s.label] if names else s.label, s.jpeg) for s in read}


KEYS = ["a/0", "a/1", "b/0", "c d/0"]
BY_LABEL = {key: (str(label), data) for key, label, data in zip(KEYS, LABELS, JPEG, strict=True)}
BY_NAME = {key: (f"p{label}", data) for key, label, data in zip(KEYS, LABELS, JPEG, strict=True)}
LINES = {
    "header": ("age,label,path", "30,{label},{path}", BY_LABEL),
    "names": ("path,identity", "{path},p{label}", BY_NAME),
    "quoted": ("path,identity", '"{path}","p{label}"', BY_NAME),
    "plain": (None, "{path},{label}", BY_LABEL),
    "label first": (None, "{label}\t{path}", BY_LABEL),
    "two words": (None, "{path}\tp{label}", BY_NAME),
    "insightface": (None, "1\t{root}/{path}\t{label}", BY_LABEL),
    "insightface with landmarks": (None, "1\t{root}/{path}\t{label}\t1\t2\t3\t4", BY_LABEL),
    "im2rec": (None, "5\t{label}.000000\t{path}", BY_LABEL),
    "im2rec with labels": (None, "5\t{label}.0\t0.25\t{path}", BY_LABEL),
    "windows": ("path;identity\r".replace(";", ","), "{path},p{label}\r", BY_NAME),
    "blank lines": ("\n \npath,identity", "{path},p{label}\n", BY_NAME),
    "blank line with byte order mark": ("\ufeff\n\npath,identity", "{path},p{label}", BY_NAME),
    "byte order mark": ("\ufeffpath,identity", "{path},p{label}", BY_NAME),
}


@pytest.mark.parametrize("part_bytes", [1 << 20, 7])
@pytest.mark.parametrize("name", LINES)
def test_list_of_every_kind_gives_the_images_and_labels(
    images: Path, tmp_path: Path, name: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed_files, "_PART_BYTES", part_bytes)
    header, line, wanted = LINES[name]
    rows = zip(PATHS, LABELS, strict=True)
    lines = [line.format(root=images, path=path, label=label) for path, label in rows]
    text = "\n".join([*([header] if header else []), *lines, ""])
    (images / "faces.csv").write_text(text, "utf-8", newline="")
    dataset = convert(ListSource(images / "faces.csv"), tmp_path / "out")
    assert samples(dataset) == wanted
    assert (dataset.faults, dataset.about.image_size) == ((), (16, 16))


def test_list_lines_that_are_invalid_or_lead_out_are_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "0.jpg").write_bytes(JPEG[0])
    os.symlink(tmp_path / "secret" / "0.jpg", images / "a" / "link.jpg")
    os.symlink(tmp_path / "secret", images / "a" / "linked")
    os.symlink(images / "a", images / "inside")
    (images / "notes.txt").write_text("text")
    lines = [
        "path,label",
        *(f"{path},{label}" for path, label in zip(PATHS, LABELS, strict=True)),
        "../secret/0.jpg,1",
        f"{tmp_path}/secret/0.jpg,1",
        "a/../../secret/0.jpg,1",
        "s3://elsewhere/0.jpg,1",
        "a/..,1",
        "a/0.jpg",
        "a/0.jpg,x",
        "a/0.jpg,-1",
        "a/0.jpg,3000000000",
        ",1",
        "a/link.jpg,7",
        "a/linked/0.jpg,7",
        "inside/0.jpg,7",
        "a/missing.jpg,7",
        "notes.txt,7",
    ]
    (images / "faces.csv").write_text("\n".join(lines))
    dataset = convert(ListSource(images / "faces.csv"), tmp_path / "out")
    assert samples(dataset) == {**BY_LABEL, "inside/0": ("7", JPEG[0])}
    of_lines = [fault for fault in dataset.faults if fault.kind == "label"]
    assert len(of_lines) == 10
    named = [lines[5 + n].split(",")[0][:40] in str(fault) for n, fault in enumerate(of_lines)]  # long lines are cut
    assert named == [True] * 10
    assert sum("leads out" in fault.reason for fault in of_lines) == 5
    others = sorted((fault.kind, fault.member) for fault in dataset.faults if fault.kind != "label")
    assert others == [
        ("link", "a/link.jpg"),
        ("link", "a/linked/0.jpg"),
        ("other file", "notes.txt"),
        ("unreadable", "a/missing.jpg"),
    ]


def test_list_elsewhere_needs_the_root_of_its_images(images: Path, tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("".join(f"{path},{label}\n" for path, label in zip(PATHS, LABELS, strict=True)))
    source = open_source("list", tmp_path / "faces.csv", {"root": str(images)})
    assert samples(convert(source, tmp_path / "out")) == BY_LABEL


def test_list_in_a_store_gives_the_images_of_folders_with_odd_names(object_store: ObjectStore, tmp_path: Path) -> None:
    paths = ["Amélie/0.jpg", "Ann Lee/0.jpg", "a%20b/0.jpg"]
    for path, data in zip(paths, JPEG[:3], strict=True):
        write_bytes(object_store.uri(path), data)
    object_store.put("faces.csv", "".join(f"{path},{path[:-6]}\n" for path in paths).encode())
    dataset = convert(ListSource(object_store.uri("faces.csv")), tmp_path / "out")
    assert sorted(samples(dataset).values()) == [(path[:-6], data) for path, data in zip(paths, JPEG[:3], strict=True)]


def test_list_that_is_a_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder: give the file that lists its images, or --from folder"):
        convert(ListSource(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("text", ["", "\n\n", "one\n", "path,label\n", "a,b,c,d\n", "1 2 3\n"])
def test_list_without_paths_and_labels_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "faces.csv").write_text(text)
    message = r"faces\.csv: (no list of paths and labels .*: name its columns|lists no image: each line needs)"
    with pytest.raises(DataError, match=message):
        convert(ListSource(tmp_path / "faces.csv"), tmp_path / "out")
