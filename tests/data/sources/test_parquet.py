"""Parquet files: structs of Hugging Face, columns of bytes, labels of every type, large row groups, corruption."""

import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.data.conversion import listing, mapping, spill
from rayface.data.conversion.mapping import MapParts, map_in_threads
from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.sources import open_source, parquet_rows
from rayface.data.sources.parquet import ParquetSource
from rayface.storage import DataError


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


JPEG = [jpeg(seed) for seed in range(6)]
LABELS = [5, 0, 5, 2, 2, 0]


def write(path: Path, columns: dict[str, Any], *, group: int = 4, metadata: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=group)
    return path


def samples(dataset: Dataset) -> dict[str, tuple[str | int, bytes]]:
    read = [s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)]
    names = dataset.identities
    return {s.key: (names[s.label] if names else s.label, s.jpeg) for s in read}


def test_parquet_of_hugging_face_takes_bytes_path_and_class_names(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(7)]
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}}}
    for number, rows in enumerate((range(4), range(4, 6))):
        images = [{"bytes": JPEG[row], "path": f"{row:04d}.jpg"} for row in rows]
        columns = {"image": images, "label": [LABELS[row] for row in rows]}
        write(tmp_path / "in" / "data" / f"train-0000{number}-of-00002.parquet", columns, group=3, metadata=about)
    dataset = convert(ParquetSource(tmp_path / "in"), tmp_path / "out")
    assert samples(dataset) == {f"{row:04d}": (f"n{LABELS[row]}", JPEG[row]) for row in range(6)}
    assert (dataset.identities, dataset.faults, dataset.about.image_size) == (("n0", "n2", "n5"), (), (16, 16))


def test_parquet_files_of_a_series_that_are_missing_are_named_and_counted(tmp_path: Path) -> None:
    columns = {"image": JPEG, "label": LABELS}
    for name in ("data/train-00000-of-00003", "data/train-00002-of-00003-0123ab", "test-00001-of-00001"):
        write(tmp_path / "in" / f"{name}.parquet", columns)
    (fault,) = convert(ParquetSource(tmp_path / "in"), tmp_path / "out").faults
    assert str(fault) == f"{tmp_path}/in/data/train-*-of-00003: 1 of 3 files are missing: download them"
    assert (fault.kind, fault.num_lost) == ("not read", 1)
    one = convert(ParquetSource(tmp_path / "in" / "data" / "train-00000-of-00003.parquet"), tmp_path / "one")
    assert one.faults == ()  # it was asked for


@pytest.mark.parametrize(
    ("names", "why"),
    [(["ann", "bob", "cy"], "3 names, but a label 5"), (["ann", "bob", "ann", "d", "e", "f"], "names occur twice")],
)
def test_parquet_class_names_that_do_not_fit_the_labels_are_left_out_with_a_warning(
    tmp_path: Path, messages: Callable[[], list[str]], names: list[str], why: str
) -> None:
    about = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
    path = write(tmp_path / "x.parquet", {"image": JPEG, "label": LABELS}, metadata=about)
    assert convert(ParquetSource(path), tmp_path / "out").identities == ("0", "2", "5")
    assert messages() == [f"{path}: its ClassLabel gives no names to the identities: {why}"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    "labels",
    [
        pa.array(LABELS, pa.int8()),
        pa.array(LABELS, pa.uint64()),
        pa.array([f"p{label}" for label in LABELS], pa.string()),
        pa.array([f"p{label}" for label in LABELS], pa.large_string()),
        pa.array([f"p{label}" for label in LABELS]).dictionary_encode(),
    ],
    ids=lambda labels: str(labels.type)[:10],
)
def test_parquet_with_bytes_takes_labels_and_names(tmp_path: Path, kind: pa.DataType, labels: pa.Array) -> None:
    path = write(tmp_path / "x.parquet", {"jpg": pa.array(JPEG, kind), "identity": labels, "age": list(range(6))})
    dataset = convert(ParquetSource(path), tmp_path / "out")
    is_named = not pa.types.is_integer(labels.type)
    wanted = [f"p{label}" if is_named else str(label) for label in LABELS]
    assert samples(dataset) == {f"{row // 4:05d}-{row % 4:08d}": (wanted[row], JPEG[row]) for row in range(6)}


def test_parquet_columns_that_are_ambiguous_are_named_with_the_option(tmp_path: Path) -> None:
    columns = {"face": JPEG, "mask": JPEG, "who": LABELS, "camera": LABELS, "key": [f"a/{n}.jpg" for n in range(6)]}
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(
        DataError, match=r"several columns may be the image: face, mask: set convert.options.image=NAME"
    ):
        convert(ParquetSource(path), tmp_path / "out")
    options = {"image": "face", "label": "who"}
    dataset = convert(open_source("parquet", path, options), tmp_path / "out")
    assert sorted(samples(dataset)) == [f"a/{n}" for n in range(6)]
    for name, column in (("image", "who"), ("label", "face"), ("label", "nothing")):
        with pytest.raises(
            DataError, match=rf"convert.options.{name}: '{column}' must be a column of .*; it has face,"
        ):
            convert(open_source("parquet", path, {**options, name: column}), tmp_path / "out2")
    with pytest.raises(DataError, match="no column of images"):
        convert(ParquetSource(write(tmp_path / "y.parquet", {"label": LABELS})), tmp_path / "out2")


def test_parquet_files_with_labels_of_two_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", {"image": JPEG, "label": LABELS})
    write(tmp_path / "in" / "b.parquet", {"image": JPEG, "label": [str(label) for label in LABELS]})
    with pytest.raises(
        DataError, match=r"b\.parquet: its columns, type of label or class names differ from .*a\.parquet"
    ):
        convert(ParquetSource(tmp_path / "in"), tmp_path / "out")
    write(tmp_path / "in" / "b.parquet", {"image": JPEG, "label": pa.array(LABELS, pa.int8())})
    assert convert(ParquetSource(tmp_path / "in"), tmp_path / "out").num_images == 12


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_with_text_that_is_not_utf_8_keeps_its_images(dictionary: bool, tmp_path: Path) -> None:
    names = pa.array([b"\xc9milie", b"\xc9milie", None, b"bob", b"bob", b"bob"], pa.binary())
    keys = pa.array([b"%d\xff.jpg" % number for number in range(6)], pa.binary())
    texts = [pa.Array.from_buffers(pa.string(), 6, column.buffers()) for column in (names, keys)]
    table = pa.table({"image": JPEG, "label": texts[0], "key": texts[1]})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=dictionary)
    dataset = convert(ParquetSource(tmp_path / "x.parquet"), tmp_path / "out")
    wanted = {f"{row}/xff": (r"\xc9milie" if row < 2 else "bob", JPEG[row]) for row in (0, 1, 3, 4, 5)}
    assert samples(dataset) == wanted
    assert [(fault.kind, fault.member) for fault in dataset.faults] == [("label", "row 2 of row group 0")]


def test_parquet_rows_without_image_or_label_are_faults(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in JPEG]
    images[1] = None
    images[2] = {"bytes": None, "path": "elsewhere.jpg"}
    images[3]["bytes"] = JPEG[3][:-30]
    path = write(tmp_path / "x.parquet", {"image": images, "label": [0, 0, 0, 0, -1, None]}, group=3)
    dataset = convert(ParquetSource(path), tmp_path / "out")
    assert [image for _, image in samples(dataset).values()] == [JPEG[0]]
    assert sorted((fault.kind, fault.member) for fault in dataset.faults) == [
        ("label", "row 1 of row group 1"),
        ("label", "row 2 of row group 1"),
        ("unreadable", "row 0 of row group 1"),
        ("unreadable", "row 1 of row group 0"),
        ("unreadable", "row 2 of row group 0"),
    ]


def test_parquet_with_a_large_row_group_is_streamed_in_bounded_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 256, 20_000, dtype=np.uint8).tobytes() for _ in range(5000)]
    path = write(tmp_path / "x.parquet", {"image": data, "label": [0] * 5000}, group=5000)
    source = pickle.loads(pickle.dumps(ParquetSource(path)))
    source.prepare("")
    images = source.list_images(0).images
    before = pa.total_allocated_bytes()
    pa.default_memory_pool().release_unused()
    tracemalloc.start()
    most, order = 0, [*range(0, 5000, 128)]
    order[3], order[4] = order[4], order[3]  # threads run ahead of each other
    for start in order:
        for row, image in enumerate(source.read(0, images.slice(start, 128)), start):
            assert image.data == data[row]
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most + peak < 75_000_000  # 2,048 rows are 41 MB, all are 100 MB
    assert [image.data for image in source.read(0, images.slice(7, 1))] == [data[7]]


def reading_with_copies(work: Any, parts: Any, name: str, *, rows: int | None = None) -> Any:
    """Map parts in threads; each task that reads has a copy of the source, as in processes."""
    stored = pickle.dumps(work) if name == "read images" else b""
    return map_in_threads(lambda part: (pickle.loads(stored) if stored else work)(part), parts, name, rows=rows)


@pytest.mark.parametrize("map_parts", [map_in_threads, reading_with_copies])
@pytest.mark.parametrize(("groups", "batches"), [([1500], 375 + 1), ([400, 352, 748], 375 + 3 + 50 + 37)])
def test_parquet_with_large_row_groups_decodes_each_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, map_parts: MapParts, groups: list[int], batches: int
) -> None:
    for module, name, value in (
        (listing, "UNIT_IMAGES", 300),
        (spill, "_READ", 8),
        (parquet_rows, "_BATCH", 4),
        (mapping, "num_cpus", lambda: 3),
    ):
        monkeypatch.setattr(module, name, value)
    path, schema = tmp_path / "x.parquet", pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in groups:
            writer.write_table(pa.table([JPEG[:1] * rows, [0] * rows], schema=schema))
    decoded, read_batch = [], parquet_rows._RowReader._read_batch
    monkeypatch.setattr(
        parquet_rows._RowReader, "_read_batch", lambda self: decoded.append(self._group) or read_batch(self)
    )
    dataset = convert(ParquetSource(path), tmp_path / "out", map_parts=map_parts)
    assert dataset.num_images == sum(groups)
    # Besides all batches: the first of each group, for its listing, and those that a task skips in its first group.
    assert len(decoded) == batches


def test_parquet_that_is_corrupt_loses_rows_by_name_or_is_refused(tmp_path: Path) -> None:
    columns = {"image": JPEG, "label": LABELS}
    good = write(tmp_path / "x.parquet", columns, group=2).read_bytes()
    offset = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0).data_page_offset
    (tmp_path / "x.parquet").write_bytes(good[:offset] + bytes(40) + good[offset + 40 :])
    source = ParquetSource(tmp_path / "x.parquet")
    source.prepare("")
    found = [[*source.read(part, source.list_images(part).images)] for part in range(3)]
    assert [image.data for part in (0, 2) for image in found[part]] == [*JPEG[:2], *JPEG[4:]]
    assert all(isinstance(fault, Fault) and "cannot be read" in fault.reason for fault in found[1])
    for data in (b"", good[:-1], good[:-200], b"<html>" * 9):
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"x\.parquet: not a parquet file .*: download it again, or remove it"):
            ParquetSource(tmp_path).prepare("")
    for place, message in (
        (tmp_path / "none", "no such folder or parquet file"),
        (tmp_path / "out", "no parquet file"),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            ParquetSource(place).prepare("")


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_with_labels_that_are_no_names_is_refused(dictionary: bool, tmp_path: Path) -> None:
    labels = pa.array(["x" * 5_000] * 6)
    columns = {"image": JPEG, "label": labels.dictionary_encode() if dictionary else labels}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", use_dictionary=dictionary)
    with pytest.raises(DataError, match=r"label: .*more than 4,096 bytes: set convert.options.label=NAME of another"):
        convert(ParquetSource(tmp_path / "x.parquet"), tmp_path / "out")
