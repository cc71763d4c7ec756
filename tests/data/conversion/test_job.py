"""The job of a conversion: files of its sources that a resume must find unchanged."""

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.alignment.aligned_source import AlignedSettings, AlignedSource
from rayface.data.conversion.job import changed_in_job, job_of
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.convert import convert
from rayface.data.sources import open_source
from rayface.storage import DataError
from tests.conftest import ObjectStore
from tests.data.scanned_tars import picture
from tests.data.sources.bin_files import bin_file
from tests.data.sources.in_memory import InMemory
from tests.data.sources.rec_files import insightface
from tests.data.sources.test_lmdb import write as write_lmdb
from tests.data.sources.test_webdataset import pairs
from tests.data.sources.test_webface_zip import archive
from tests.data.test_convert import Killed, killed_in

IMAGES = [picture(number, "png") for number in range(2)]


def parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": IMAGES, "label": [0, 1]}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "source", "files"),
    [
        ("bin", "a.bin", {"a.bin": bin_file(IMAGES, [True])}),
        ("folder", "", {"ada/0.png": IMAGES[0]}),
        ("hub", "", {"train.parquet": parquet()}),
        ("list", "a.csv", {"a.csv": b"ada/0.png,0\n"}),
        ("parquet", "", {"a/b.parquet": parquet()}),
        ("rec", "", {"a.rec": insightface([(0, IMAGES[0])]).data, "a.idx": None, "a.lst": None}),
        ("webdataset", "", {"a/b.tar": pairs("a", [0], IMAGES[:1]), "identities.parquet": None}),
        ("webdataset", "b.tar", {"b.tar": pairs("a", [0], IMAGES[:1])}),
        ("webface-zip", "", {"a.zip": archive({"a/0.png": IMAGES[0]}), "b.zip": archive({"b/0.png": IMAGES[0]})}),
    ],
)
def test_job_of_a_source_has_size_and_time_of_its_archives(
    tmp_path: Path, kind: str, source: str, files: dict[str, bytes | None]
) -> None:
    expected = {}
    for name, data in files.items():
        path = tmp_path / name
        expected[str(path)] = "missing" if data is None else f"{len(data)} bytes, 1000000000000 ns"
        if data is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (1000, 1000))
    opened = open_source(kind, tmp_path / source)
    opened.prepare("")
    assert job_of([opened], ConvertSettings())["files"] == ({} if kind == "folder" else expected)
    assert opened.inventory() == (["ada"] if kind == "folder" else opened.parts())
    aligned = AlignedSource(opened, AlignedSettings(), lambda: lambda image: [])
    assert (aligned.input_files(), aligned.inventory()) == (opened.input_files(), opened.inventory())


def test_job_of_an_lmdb_has_its_data_file(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", {"ada/0": IMAGES[0]})
    source = open_source("lmdb", tmp_path / "db")
    assert source.input_files() == [str(tmp_path / "db" / "data.mdb")]


def test_job_of_a_source_in_a_store_has_size_and_time_of_its_files(object_store: ObjectStore) -> None:
    object_store.put("src/a.tar", pairs("a", [0], IMAGES[:1]))
    source = open_source("webdataset", object_store.uri("src"))
    source.prepare("")
    size = len(object_store.files()["src/a.tar"])
    first, second = job_of([source], ConvertSettings())["files"].values()  # type: ignore[attr-defined]
    assert (first.partition(" bytes, ")[0], second) == (str(size), "missing")


def test_convert_resumed_after_an_archive_was_replaced_is_refused_and_names_it(tmp_path: Path) -> None:
    def convert_zips(killed: bool = False) -> list[str]:
        map_parts = {"map_parts": killed_in("read images", 0)} if killed else {}
        return convert(open_source("webface-zip", tmp_path / "in"), tmp_path / "out", **map_parts).keys()  # type: ignore[arg-type]

    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.zip").write_bytes(archive({f"{name}/0.png": IMAGES[0]}))
    with pytest.raises(Killed):
        convert_zips(killed=True)
    replaced = tmp_path / "in" / "b.zip"
    before = replaced.stat()
    replaced.write_bytes(archive({"b/0.png": IMAGES[1]}))
    with pytest.raises(DataError) as refused:
        convert_zips()
    assert str(refused.value) == (
        f"convert.out: {tmp_path}/out: {replaced} has changed since the job started (its size or time): restore it to "
        "resume, or delete the folder and run again"
    )
    (tmp_path / "in" / "c.zip").write_bytes(archive({"c/0.png": IMAGES[1]}))
    replaced.write_bytes(archive({"b/0.png": IMAGES[0]}))
    os.utime(replaced, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"/in/c\.zip has changed since"):  # another file, not another hash of the parts
        convert_zips()
    (tmp_path / "in" / "c.zip").unlink()
    assert sorted(convert_zips()) == ["a/0", "b/0"]


def test_convert_resumed_after_a_folder_was_added_is_refused(tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.png").write_bytes(IMAGES[0])
    with pytest.raises(Killed):
        convert(open_source("folder", tmp_path / "in"), tmp_path / "out", map_parts=killed_in("read images", 0))
    (tmp_path / "in" / "cy").mkdir()
    with pytest.raises(DataError, match=r"/out: .*/in has other folders or files than when the job started"):
        convert(open_source("folder", tmp_path / "in"), tmp_path / "out")


def test_changed_in_job_of_other_sources_or_settings_is_their_name(tmp_path: Path) -> None:
    job = job_of([InMemory([[], []])], ConvertSettings())
    assert changed_in_job({**job, "faults": {}}, job, "out") is None
    with pytest.raises(DataError, match=r"^out: .*/memory has other folders or files than when the job started"):
        changed_in_job(job, job_of([InMemory([[]])], ConvertSettings()), "out")
    assert changed_in_job(job, job_of([InMemory([[], []])], ConvertSettings(seed=1)), "out") == "seed"
    other = {**job, "sources": [], "files": {"a": "missing"}}
    assert changed_in_job(job, other, "out") == "sources"
