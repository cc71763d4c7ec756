"""The parquet format: what is written is read, and bad files get one line each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import part_note, write_part
from rayface.embedding.rows import read_found, read_labels, read_rows
from rayface.storage import DataError

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
    monkeypatch.setattr("rayface.embedding.rows._ROWS", 2)
    path = tmp_path / "one.parquet"
    pq.write_table(table(), path)
    for start in range(7):
        for stop in range(start + 1, 8):
            assert read_rows(str(path), start, stop).keys.to_pylist() == KEYS[start:stop]


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
        ([table(embedding=VECTORS[:, 0])], "embedding: is float, must be a list of float16 or float32"),
        ([table(embedding=LABELS[:, None].tolist())], "list<.*int64>, must be a list of float16 or float32"),
        ([table(), table(VECTORS[:, :4])], "length 4, in .*0.parquet it is float32 of length 8; all files must come"),
        ([table().slice(0, 0)], "has no rows"),
        ([], "no parquet files in this folder"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, tables: list[pa.Table], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_embeddings(put(tmp_path, *tables))
    assert "\n" not in str(raised.value)


FIXED = pa.list_(pa.float32(), 8)
PLAIN = pa.list_(pa.float32())


@pytest.mark.parametrize(
    "columns",
    [
        {"label": pa.array(LABELS, pa.int32())},
        {"label": pa.array(LABELS).dictionary_encode()},
        {"key": pa.array(KEYS).dictionary_encode()},
        {"key": pa.array(KEYS, pa.large_string())},
        {"embedding": pa.array(VECTORS.tolist(), PLAIN)},
        {"embedding": pa.array(VECTORS.tolist(), pa.large_list(pa.float32()))},
        {"embedding": pa.array(VECTORS.tolist(), pa.list_(pa.float64()))},
        {"embedding": pa.array(VECTORS.tolist(), pa.list_(pa.float64(), 8))},
    ],
)
def test_columns_of_other_encodings_are_read(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    """As other writers have them: plain and large lists, dictionaries, int32, float64."""
    path = put(tmp_path, table().drop_columns(list(columns)).append_column(*next(iter(columns.items())))) / "0.parquet"
    found = open_embeddings(tmp_path)
    assert (found.num_rows, found.size, found.dtype) == (7, 8, "float32")
    labelled = list(read_labels(found.files[0]))
    wanted = pa.array([KEYS[5], KEYS[1]])
    for start, stop, rows in [(1, 5, read_rows(str(path), 1, 5))] + [
        (row, row + 1, rows) for row, rows in zip((1, 5), read_found(str(path), wanted), strict=True)
    ]:
        assert rows.keys.to_pylist() == KEYS[start:stop]
        assert rows.labels.tolist() == LABELS[start:stop].tolist()
        assert (rows.embeddings == VECTORS[start:stop]).all()
    assert [key for keys, _ in labelled for key in keys.to_pylist()] == KEYS
    assert np.concatenate([labels for _, labels in labelled]).tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (None, FIXED, "embedding: some rows have none"),
        (None, PLAIN, "embedding of face4: is missing"),
        ([1.0] * 7 + [None], FIXED, "embedding of face4: has values that are missing"),
        ([1.0] * 7, PLAIN, "embedding of face4: has 7 values, others 8"),
    ],
)
def test_missing_values_are_named_with_their_file(tmp_path: Path, row: Any, kind: pa.DataType, message: str) -> None:
    rows = VECTORS.tolist()
    rows[4] = row
    path = put(tmp_path, table(embedding=pa.array(rows, kind))) / "0.parquet"
    with pytest.raises(DataError, match=rf"^{path}: {message}") as raised:
        read_rows(str(path), 0, 7)
    assert "\n" not in str(raised.value)


def test_a_damaged_page_is_named_with_its_file(tmp_path: Path) -> None:
    """The footer is whole, so that the file opens."""
    path = tmp_path / "0.parquet"
    pq.write_table(table(), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    found = open_embeddings(tmp_path)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as parquet"):
        list(read_labels(found.files[0]))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two files and the manifest that names them."""
    for number in range(2):
        write_part(str(tmp_path / f"part-{number}.parquet"), [(KEYS, LABELS, VECTORS)], size=8, dtype="fp16", note={})
    parts = [{"path": f"part-{number}.parquet", "num_rows": 7} for number in range(2)]
    (tmp_path / "embeddings.json").write_text(json.dumps({"parts": parts}))
    return tmp_path


def test_a_folder_is_held_against_its_manifest(listed: Path) -> None:
    """Files that are gone, other rows than it says, files of something else, a manifest that is damaged."""
    assert open_embeddings(listed).num_rows == 14
    (listed / "part-0.parquet").rename(listed / "other.parquet")
    with pytest.raises(DataError, match=r"1 of 2 files that embeddings.json names are not there \(.*part-0.parquet\)"):
        open_embeddings(listed)
    (listed / "part-0.parquet").write_bytes((listed / "other.parquet").read_bytes())
    with pytest.raises(DataError, match=r"other.parquet: is not named in embeddings.json"):
        open_embeddings(listed)
    (listed / "other.parquet").unlink()
    batches = [(KEYS[:3], LABELS[:3], VECTORS[:3])]
    write_part(str(listed / "part-1.parquet"), batches, size=8, dtype="fp16", note={})
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows, embeddings.json says 7: delete it"):
        open_embeddings(listed)
    (listed / "embeddings.json").write_text("{}")
    with pytest.raises(DataError, match=r"embeddings.json: cannot be read \(KeyError: 'parts'\): delete it"):
        open_embeddings(listed)


def test_a_file_that_shrank_since_it_was_opened_is_refused(listed: Path) -> None:
    file = open_embeddings(listed).files[1]
    batches = [(KEYS[:3], LABELS[:3], VECTORS[:3])]
    write_part(file.path, batches, size=8, dtype="fp16", note={})
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows where it had 7"):
        list(read_labels(file))
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows where it had 7"):
        read_rows(file.path, 0, 7)


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
