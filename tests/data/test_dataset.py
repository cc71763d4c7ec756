"""Opening one or several directories, local and in an object store."""

import os
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs as pafs

from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.writer import write_dataset
from rayface.storage import DataError, paths
from tests.data.shard_files import JPEG, small_dataset, write_tar


def test_open_dataset_of_named_directories_joins_by_name(tmp_path: Path) -> None:
    a = small_dataset(tmp_path, "one", ("ann", "bob", "cy", "di", "ed"))
    b = small_dataset(tmp_path, "two", ("zoe", "bob", "ann", "yan", "ed"))
    dataset = open_dataset([a, b])
    assert dataset.identities == ("ann", "bob", "cy", "di", "ed", "zoe", "yan")
    assert (dataset.num_classes, dataset.name) == (7, "one+two")
    assert dataset.index.label.tolist() == [0, 1, 2, 3, 4, 5, 1, 0, 6, 4]
    assert dataset.index.source_label.tolist() == [0, 1, 2, 3, 4] * 2
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert [sample.label for sample in samples] == [0, 1, 2, 3, 4] * 2
    assert dataset.keys() == [f"{name}/{key}" for name in ("one", "two") for key in JPEG]


def test_open_dataset_of_unnamed_directories_is_one_label_space(tmp_path: Path) -> None:
    a = small_dataset(tmp_path, "one")
    write_tar(tmp_path / "two" / "a.tar", [("x.jpg", b"x"), ("x.cls", b"11")])
    dataset = open_dataset([a, tmp_path / "two"])
    assert (dataset.num_classes, dataset.identities) == (12, None)
    assert dataset.index.label.tolist() == [0, 1, 2, 3, 4, 11]


def test_open_dataset_of_real_images_joins_them(faces: Path) -> None:
    dataset = open_dataset([faces / "celeba_wild", faces / "celeba_small"], join="labels")
    assert (dataset.num_images, dataset.num_classes, dataset.faults) == (12944, 2944, ())
    assert dataset.about.image_size == (112, 112)
    assert dataset.about.layout == "shuffled"
    ids = np.array([0, 6027, 6028, 12943])
    samples = read_samples(dataset.shard_paths(), dataset.index.select(ids))
    assert all(isinstance(sample, Sample) and sample.jpeg[:2] == b"\xff\xd8" for sample in samples)
    keys = dataset.keys()
    assert [sample.key for sample in samples] == [keys[i] for i in ids]


def test_open_dataset_with_invalid_arguments_is_refused(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        open_dataset([folder, folder])
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match=r"link: is given twice, also as .*: leave one of them out"):
        open_dataset([folder, tmp_path / "link"])
    with pytest.raises(ValueError, match="max_corrupt_fraction 2"):
        open_dataset(folder, max_corrupt_fraction=2)
    with pytest.raises(DataError, match="cannot be opened"):
        open_dataset("nosuch://bucket/set")


def test_open_dataset_beside_names_that_are_no_utf8_ignores_or_names_them(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    for name in ("dataset.json", "index.parquet"):
        (folder / name).unlink()
    (folder / os.fsdecode(b"caf\xe9.txt")).touch()
    assert open_dataset(folder).num_images == 5
    odd = folder / os.fsdecode(b"caf\xe9.tar")
    odd.touch()
    for use in (open_dataset, check):
        with pytest.raises(DataError, match=r"/caf\\udce9\.tar: is not valid UTF-8: rename it$"):
            use(folder)
    odd.unlink()
    folder.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(DataError, match=r"/caf\\udce9: is not valid UTF-8: rename it$"):
        open_dataset(tmp_path / os.fsdecode(b"caf\xe9"))


def test_open_dataset_of_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    assert open_dataset(f"file://{folder}").roots == (str(folder),)


def test_open_dataset_of_a_uri_reads_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pyarrow filesystem behind a scheme of its own stands in for an object store."""
    local = pafs.LocalFileSystem()

    def from_uri(uri: str) -> tuple[object, str]:
        return local, str(tmp_path / uri.removeprefix("mem://").partition("?")[0])

    monkeypatch.setattr(paths, "_filesystem", from_uri)
    samples = [(key, i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())]
    uri = "mem://bucket/set?endpoint_override=here"
    made = write_dataset(uri, samples, name="x", identities="abcde", image_size=None, shard_size=5000)
    assert made.shards[0].path == "mem://bucket/set/shard-000000.tar?endpoint_override=here"
    assert made.keys() == list(JPEG)
    got = read_samples(made.shard_paths(), made.index.select(np.array([3, 0, 4])))
    assert [sample.jpeg for sample in got] == [JPEG["k3"], JPEG["k0"], JPEG["k4"]]
    assert open_dataset(tmp_path / "bucket" / "set").digest == made.digest
    (tmp_path / "bucket" / "set" / "dataset.json").unlink()
    assert open_dataset(uri).num_images == 5
    with pytest.raises(DataError, match="not empty"):
        write_dataset(uri, samples, name="x", identities="abcde", image_size=None)
