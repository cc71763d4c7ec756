"""The convert stage: sources of a config, and where its tasks run."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayface.config import ClusterConfig, Config, load
from rayface.data.dataset import Dataset
from rayface.data.manifest import UNFINISHED
from rayface.data.targets import TARGETS, Written
from rayface.data.writer import write_dataset
from rayface.files import remove_folder
from rayface.stages import conversion
from rayface.stages.conversion import Tasks, convert_sources, write_target
from rayface.storage import DataError
from tests.conftest import ObjectStore
from tests.data.scanned_tars import picture
from tests.data.sources.bin_files import bin_file


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


def test_convert_sources_with_another_target_is_one_line(tmp_path: Path) -> None:
    keys = {"source": str(tmp_path), "kind": "folder", "to": "bin", "out": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=r"convert\.to: bin: must not be set") as error:
        convert_sources(load(overrides={f"convert.{key}": value for key, value in keys.items()}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_convert_sources_with_another_number_of_formats_is_one_line(tmp_path: Path) -> None:
    keys = {"source": "[a,b,c]", "kind": "[folder,webdataset]", "out": tmp_path / "out"}
    config = load(overrides={f"convert.{key}": str(value) for key, value in keys.items()})
    with pytest.raises(ValueError, match=r"^convert.kind: 2 formats for 3 sources: give one, or one for each source$"):
        convert_sources(config)


def test_tasks_start_ray_once_for_the_first_phase_of_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str | None] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    @contextlib.contextmanager
    def session(address: str | None, **options: Any) -> Iterator[None]:
        started.append(address)
        yield

    monkeypatch.setattr(conversion, "ray", SimpleNamespace(is_initialized=lambda: bool(started)))
    monkeypatch.setattr(conversion, "ray_session", session)
    for name in ("map_in_threads", "map_unordered"):
        monkeypatch.setattr(conversion, name, lambda *args, name=name, **options: name)
    with Tasks(ClusterConfig()) as tasks:
        ways = [tasks.map(str, range(number), "phase") for number in (8, 9, 1, 9)]
    assert (ways, started) == (["map_in_threads", *["map_unordered"] * 3], [None])
    started.clear()
    with Tasks(ClusterConfig(address="10.0.0.1:6379")) as tasks:  # its machines read the source
        assert (tasks.map(str, range(1), "phase"), started) == ("map_unordered", ["10.0.0.1:6379"])


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
    (tmp_path / "out" / UNFINISHED).touch()
    conversion._require_new(str(tmp_path / "out"), tmp_path)  # the target starts over


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
    assert (written.num_images, [fault.kind for fault in written.faults]) == (2, ["unreadable"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.lost.parquet"]
    assert pq.read_table(tmp_path / "out.lost.parquet")["key"].to_pylist() == ["b_broken"]


@pytest.mark.parametrize(("to", "beside"), [("bin", []), ("folder", ["out.pairs.csv"])])
def test_write_target_of_pairs_keeps_them_in_the_format_or_beside_it(
    tmp_path: Path, to: str, beside: list[str]
) -> None:
    (tmp_path / "in").write_bytes(bin_file([picture(number, "jpg") for number in range(4)], [True, False]))
    write_target(target_config(tmp_path, to, kind="bin"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", *beside]
    for name in beside:
        lines = (tmp_path / name).read_text().splitlines()
        assert lines == ["path_a,path_b,is_same,fold", "000000.jpg,000001.jpg,1,0", "000002.jpg,000003.jpg,0,1"]


def test_write_target_of_a_dataset_counts_samples_that_were_lost_when_it_was_opened(tmp_path: Path) -> None:
    samples = [(f"k{number}", 0, picture(number, "jpg")) for number in range(4)]
    last = write_dataset(tmp_path / "in", samples, name="x", identities=["a"], image_size=None).index.offset[-1]
    os.truncate(tmp_path / "in" / "shard-000000.tar", int(last) + 600)
    config = target_config(tmp_path, kind="[]")
    with pytest.raises(DataError, match=r"^convert\.source: 1 of 4 samples are corrupt"):
        write_target(config)
    written = write_target(replace(config, data=replace(config.data, max_corrupt_fraction=0.25)))
    assert (written.num_images, [(fault.member, fault.num_lost) for fault in written.faults]) == (3, [("k3", 1)])
    with pytest.raises(
        ValueError, match=r"^convert\.limit: 3: has no effect on a dataset: set convert.kind=webdataset"
    ):
        write_target(target_config(tmp_path, kind="[]", limit=3))


def test_job_beside_the_output_is_what_decides_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = target_config(tmp_path)
    job = conversion._job(config)
    same = target_config(tmp_path, "bin", source="in", out="elsewhere", max_corrupt_fraction=0.5)
    assert conversion._job(same) == job
    joined = replace(config, data=replace(config.data, join="names"))
    for other in (joined, target_config(tmp_path, seed=1), target_config(tmp_path, source="[in,in]")):
        assert conversion._job(other) != job


def test_write_target_of_a_source_that_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="/in: "):
        write_target(target_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_write_target_of_a_conversion_that_was_killed_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(conversion, "remove_folder", lambda path: removed.append(path.name) or remove_folder(path))
    people(tmp_path / "in", "ab")
    (tmp_path / "in" / "b" / "broken.jpg").write_bytes(b"\xff\xd8 torn")
    with pytest.raises(DataError, match=r"^convert.max_corrupt_fraction"):
        write_target(target_config(tmp_path, max_corrupt_fraction=0))
    assert (tmp_path / ".out.dataset" / "out" / conversion.CONVERT_JOB).exists()
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_json", None)  # as killed before it is known what was left out
        with pytest.raises(TypeError):
            write_target(target_config(tmp_path))
    assert removed == []
    written = write_target(target_config(tmp_path, "folder"))
    assert (written.num_images, [fault.kind for fault in written.faults]) == (2, ["unreadable"])
    assert removed == ["out", ".out.dataset"]  # the complete one, to know that; the rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "out.lost.parquet"]


def test_write_target_into_a_store_leaves_nothing_beside_it(tmp_path: Path, object_store: ObjectStore) -> None:
    people(tmp_path / "in", "ab")
    assert write_target(target_config(tmp_path, out=object_store.uri("out"))).num_images == 2
    assert set(object_store.files()) == {"out/train-00000-of-00001.parquet"}
