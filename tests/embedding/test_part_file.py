"""One parquet file of embeddings: what is written is read, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import part_note, write_part
from rayface.embedding.rows import read_rows
from tests.embedding.embedding_files import KEYS, LABELS, VECTORS


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_write_part_of_any_type_is_read_back_with_its_note(tmp_path: Path, dtype: Any) -> None:
    """Any range of rows, and the note."""
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


def test_write_part_with_norms_adds_a_column_that_readers_ignore(tmp_path: Path) -> None:
    path, norms = str(tmp_path / "part.parquet"), np.linspace(1, 20, 7)
    batches = [(KEYS[:4], LABELS[:4], VECTORS[:4], norms[:4]), (KEYS[4:], LABELS[4:], VECTORS[4:], norms[4:])]
    assert write_part(path, batches, size=8, dtype="fp16", note={}, norms=True) == 7
    column = pq.read_table(path, columns=["norm"])["norm"]
    assert column.type == pa.float32()
    np.testing.assert_array_equal(column.to_numpy(), norms.astype(np.float32))
    assert read_rows(path, 0, 7).keys.to_pylist() == KEYS
    assert open_embeddings(tmp_path).num_rows == 7


def test_write_part_with_an_error_half_way_leaves_no_file(tmp_path: Path) -> None:
    """Neither the file nor its temporary name."""

    def broken() -> Any:
        yield KEYS, LABELS, VECTORS
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_part(str(tmp_path / "part.parquet"), broken(), size=8, dtype="fp16", note={})
    assert list(tmp_path.iterdir()) == []
