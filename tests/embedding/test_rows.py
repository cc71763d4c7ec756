"""Rows of embedding files: any range is read, bad rows are named by their key."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from rayface.embedding.rows import read_found, read_labels, read_rows
from rayface.storage import DataError
from tests.embedding.embedding_files import KEYS, LABELS, VECTORS, put, table


def test_read_rows_of_a_row_group_larger_than_a_block_returns_any_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of other programs may have one large row group."""
    monkeypatch.setattr("rayface.embedding.rows._ROWS", 2)
    path = tmp_path / "one.parquet"
    pq.write_table(table(), path)
    for start in range(7):
        for stop in range(start + 1, 8):
            assert read_rows(str(path), start, stop).keys.to_pylist() == KEYS[start:stop]


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
def test_columns_of_other_encodings_are_read_as_they_are_written(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    """Plain and large lists, dictionaries, int32, float64, as other programs write them."""
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
def test_read_rows_with_missing_values_names_file_and_key(
    tmp_path: Path, row: Any, kind: pa.DataType, message: str
) -> None:
    rows = VECTORS.tolist()
    rows[4] = row
    path = put(tmp_path, table(embedding=pa.array(rows, kind))) / "0.parquet"
    with pytest.raises(DataError, match=rf"^{path}: {message}") as raised:
        read_rows(str(path), 0, 7)
    assert "\n" not in str(raised.value)


def test_read_labels_of_a_corrupt_page_names_its_file(tmp_path: Path) -> None:
    """The footer is valid, so the file opens."""
    path = tmp_path / "0.parquet"
    pq.write_table(table(), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    found = open_embeddings(tmp_path)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as parquet"):
        list(read_labels(found.files[0]))


def test_read_of_a_file_that_has_shrunk_is_refused(listed: Path) -> None:
    file = open_embeddings(listed).files[1]
    batches = [(KEYS[:3], LABELS[:3], VECTORS[:3])]
    write_part(file.path, batches, size=8, dtype="fp16", note={})
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows where it had 7"):
        list(read_labels(file))
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows where it had 7"):
        read_rows(file.path, 0, 7)


@pytest.mark.parametrize(
    ("row", "message"),
    [([np.nan] * 8, "embedding of face4: has NaN"), ([np.inf] * 8, "face4: has NaN or inf"), ([0] * 8, "all zeros")],
)
def test_read_rows_without_a_direction_names_the_key(tmp_path: Path, row: list[float], message: str) -> None:
    vectors = VECTORS.copy()
    vectors[4] = row
    path = put(tmp_path, table(vectors)) / "0.parquet"
    with pytest.raises(ValueError, match=message):
        read_rows(str(path), 0, 7)


def test_read_rows_whose_squares_overflow_are_accepted(tmp_path: Path) -> None:
    path = put(tmp_path, table(VECTORS * 1e30)) / "0.parquet"
    assert len(read_rows(str(path), 0, 7).labels) == 7
