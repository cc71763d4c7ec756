"""The convert stage: sources of a config, and where its tasks run."""

from pathlib import Path
from typing import Any

import pytest

from rayface.config import Config, load
from rayface.data.dataset import Dataset
from rayface.data.targets import TARGETS, Written
from rayface.stages import conversion
from rayface.stages.conversion import convert_sources, write_target
from rayface.storage import DataError
from tests.conftest import ObjectStore
from tests.data.scanned_tars import picture


def people(folder: Path, names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "x.jpg").write_bytes(picture(ord(name), "jpg"))
    return folder


def test_convert_sources_of_several_folders_without_ray_joins_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ray_session", None)  # a few parts do not start Ray
    one, two = people(tmp_path / "one", "ab"), people(tmp_path / "two", "bc")
    keys = {"source": f"[{one},{two}]", "kind": "folder", "out": tmp_path / "out", "layout": "by_identity"}
    dataset = convert_sources(load(overrides={f"convert.{key}": str(value) for key, value in keys.items()}))
    assert dataset.identities == ("a", "b", "c")
    assert dataset.keys() == ["one/a_x", "one/b_x", "two/b_x", "two/c_x"]


def test_convert_sources_with_another_number_of_formats_is_one_line(tmp_path: Path) -> None:
    keys = {"source": "[a,b,c]", "kind": "[folder,webdataset]", "out": tmp_path / "out"}
    config = load(overrides={f"convert.{key}": str(value) for key, value in keys.items()})
    with pytest.raises(ValueError, match=r"^convert.kind: 2 formats for 3 sources: give one, or one for each source$"):
        convert_sources(config)


def target_config(tmp_path: Path, to: str = "parquet", **keys: Any) -> Config:
    given = {"source": tmp_path / "in", "kind": "folder", "out": tmp_path / "out", "to": to, **keys}
    return load(overrides={f"convert.{key}": str(value) for key, value in given.items()})


def test_write_target_into_an_output_that_is_not_empty_is_refused_before_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people(tmp_path / "in", "ab")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "x.bin").touch()
    monkeypatch.setattr(conversion, "convert_sources", None)
    with pytest.raises(DataError, match=r"^convert.out: .*/out: is not empty \(mine\)"):
        write_target(target_config(tmp_path))
    with pytest.raises(DataError, match=r"^convert.out: .*/x.bin: exists: choose another file"):
        write_target(target_config(tmp_path, "bin", out=tmp_path / "x.bin"))
    with pytest.raises(DataError, match=r"^convert.out: s3://b/x: must be a path on a disk"):
        write_target(target_config(tmp_path, "folder", out="s3://b/x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "x.bin"]


def test_write_target_that_was_cut_off_takes_up_its_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people(tmp_path / "in", "ab")
    (tmp_path / "in" / "b" / "broken.jpg").write_bytes(b"\xff\xd8 torn")

    def cut_off(dataset: Dataset, out: str) -> Written:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(TARGETS, "parquet", cut_off)
        with pytest.raises(KeyboardInterrupt):
            write_target(target_config(tmp_path))
    with pytest.raises(DataError, match=r"out: is not empty, probably of a run that was cut off: delete it and run"):
        write_target(target_config(tmp_path))
    (tmp_path / "out" / "half").unlink()
    with pytest.raises(DataError, match=r"\.out\.dataset: was started with seed 0, this job has 1"):
        write_target(target_config(tmp_path, seed=1))
    monkeypatch.setattr(conversion, "convert_sources", None)
    written = write_target(target_config(tmp_path))
    assert (written.num_images, [fault.kind for fault in written.faults]) == (2, ["image"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_write_target_of_a_conversion_that_was_killed_resumes_it(tmp_path: Path) -> None:
    people(tmp_path / "in", "ab")
    (tmp_path / "in" / "b" / "broken.jpg").write_bytes(b"\xff\xd8 torn")
    with pytest.raises(DataError, match=r"^convert.max_corrupt_fraction"):
        write_target(target_config(tmp_path, max_corrupt_fraction=0))
    assert write_target(target_config(tmp_path)).num_images == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_write_target_into_a_store_leaves_nothing_beside_it(tmp_path: Path, object_store: ObjectStore) -> None:
    people(tmp_path / "in", "ab")
    assert write_target(target_config(tmp_path, out=object_store.uri("out"))).num_images == 2
    assert set(object_store.files()) == {"out/train-00000-of-00001.parquet"}
