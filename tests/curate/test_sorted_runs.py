"""Sorted runs: rows by label, and labels read without the rest of the file."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayface.curate.sorted_runs import read_run, sort_rows, write_run
from rayface.curate.work_files import WorkPath
from rayface.embedding.rows import Rows


def test_sort_rows_of_several_parts_is_by_label_then_key() -> None:
    parts = [
        Rows(pa.array(["d", "a"]), np.array([2, 1]), np.array([[1.0], [2.0]])),
        Rows(pa.array(["c", "b"]), np.array([1, 2]), np.array([[3.0], [4.0]])),
    ]
    rows = sort_rows(parts)
    assert rows.keys.to_pylist() == ["a", "c", "b", "d"]
    assert rows.labels.tolist() == [1, 1, 2, 2]
    assert rows.embeddings.ravel().tolist() == [2, 3, 4, 1]


def test_read_run_of_some_labels_keeps_none_of_the_files_memory(tmp_path: Path) -> None:
    """A task reads from hundreds of runs: were each mapped while its rows are held, memory would follow the dataset."""
    path = tmp_path / "run-000000.arrow"
    keys, labels = [f"k{row}" for row in range(8)], np.array([0, 0, 1, 1, 1, 2, 3, 3])
    vectors = np.arange(32, dtype=np.float32).reshape(8, 4)
    write_run(WorkPath(root=path), Rows(pa.array(keys), labels, vectors))
    before = pa.total_allocated_bytes()
    rows = read_run(path, 1, 2)
    assert rows.keys.to_pylist() == keys[2:6]
    assert rows.labels.tolist() == labels[2:6].tolist()
    assert (rows.embeddings == vectors[2:6]).all()
    assert 0 < pa.total_allocated_bytes() - before < 4096
    if (maps := Path("/proc/self/maps")).exists():
        deadline = time.monotonic() + 30  # a thread of Arrow's may hold the map for a moment
        while str(path) in maps.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert str(path) not in maps.read_text()
