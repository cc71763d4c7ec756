"""The parquet format: what is written is read, and bad files get one line each."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.curate.embeddings import open_embeddings, part_note, read_rows, write_part

KEYS = [f"face{k}" for k in range(7)]
LABELS = np.arange(7) // 2
VECTORS = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)


def table(vectors: Any = VECTORS, kind: Any = None, **columns: Any) -> pa.Table:
    kind = kind or pa.float32()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors).ravel(), kind), np.shape(vectors)[1])
    return pa.table({"key": KEYS, "label": LABELS, "embedding": lists, **columns})


def put(folder: Path, *tables: pa.Table) -> Path:
    for number, each in enumerate(tables):
        pq.write_table(each, folder / f"{number}.parquet", row_group_size=3)
    return folder


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_part_is_read_as_it_was_written(tmp_path: Path, dtype: Any) -> None:
    """Any range of rows, and the note beside them."""
    batches = [(KEYS[:4], LABELS[:4], VECTORS[:4]), (KEYS[4:], LABELS[4:], VECTORS[4:])]
    path = str(tmp_path / "part.parquet")
    assert write_part(path, batches, size=8, dtype=dtype, note={"job": "x"}) == 7
    assert part_note(path) == (7, {"job": "x"})
    found = open_embeddings(tmp_path)
    kind = np.float16 if dtype == "fp16" else np.float32
    assert (found.num_rows, found.size, found.dtype) == (7, 8, kind.__name__)
    for start, stop in ((0, 7), (2, 3), (3, 6), (6, 7)):
        rows = read_rows(path, start, stop)
        assert rows.keys.to_pylist() == KEYS[start:stop]
        assert rows.labels.tolist() == LABELS[start:stop].tolist()
        assert (rows.embeddings == VECTORS[start:stop].astype(kind)).all()


def test_a_row_group_larger_than_what_is_decoded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any range of rows of files that others wrote."""
    monkeypatch.setattr("rayface.curate.embeddings._ROWS", 2)
    path = tmp_path / "one.parquet"
    pq.write_table(table(), path)
    for start in range(7):
        for stop in range(start + 1, 8):
            assert read_rows(str(path), start, stop).keys.to_pylist() == KEYS[start:stop]


def test_rows_of_a_sorted_run_keep_none_of_its_memory(tmp_path: Path) -> None:
    """A task reads from hundreds of runs: were each mapped while its rows are held, memory would follow the set."""
    path = str(tmp_path / "run-000000.arrow")
    with pa.OSFile(path, "wb") as stream, pa.ipc.new_file(stream, table().schema) as writer:
        writer.write_batch(table().to_batches()[0])
    before = pa.total_allocated_bytes()
    rows = read_rows(path, 2, 6)
    assert rows.keys.to_pylist() == KEYS[2:6]
    assert rows.labels.tolist() == LABELS[2:6].tolist()
    assert (rows.embeddings == VECTORS[2:6]).all()
    assert 0 < pa.total_allocated_bytes() - before < 4096
    if (maps := Path("/proc/self/maps")).exists():
        assert path not in maps.read_text()


def test_nothing_is_left_of_a_part_that_was_not_finished(tmp_path: Path) -> None:
    """Neither under its name nor under another one."""

    def broken() -> Any:
        yield KEYS, LABELS, VECTORS
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_part(str(tmp_path / "part.parquet"), broken(), size=8, dtype="fp16", note={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table().drop_columns(["label"])], "has no column label"),
        ([table(label=[str(k) for k in range(7)])], "label: is string, must be int64"),
        ([table(key=np.arange(7))], "key: is int64, must be string"),
        ([table(embedding=VECTORS.tolist())], "must be a fixed-size list of float16 or float32"),
        ([table(), table(VECTORS[:, :4])], "length 4, in .* length 8; all files must come from one model"),
        ([table().slice(0, 0)], "has no rows"),
        ([], "no parquet files in this folder"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, tables: list[pa.Table], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_embeddings(put(tmp_path, *tables))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder of embeddings$"):
        open_embeddings(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("row", "message"),
    [([np.nan] * 8, "embedding of face4: has NaN"), ([np.inf] * 8, "face4: has NaN or inf"), ([0] * 8, "all zeros")],
)
def test_embeddings_without_a_direction_are_named(tmp_path: Path, row: list[float], message: str) -> None:
    vectors = VECTORS.copy()
    vectors[4] = row
    path = put(tmp_path, table(vectors)) / "0.parquet"
    with pytest.raises(ValueError, match=message):
        read_rows(str(path), 0, 7)


def test_what_overflows_a_square_still_has_a_direction(tmp_path: Path) -> None:
    path = put(tmp_path, table(VECTORS * 1e30)) / "0.parquet"
    assert len(read_rows(str(path), 0, 7).labels) == 7
