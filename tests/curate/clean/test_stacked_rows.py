"""A matrix in several files reads like one array."""

from pathlib import Path

import numpy as np

from rayface.curate.clean.stacked_rows import stack, write_rows
from rayface.curate.work_files import WorkPath


def test_stack_of_several_files_is_read_like_one_array(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float16)
    cuts = [0, 30, 30, 31, 100]
    paths = [WorkPath(root=tmp_path / f"{k}.npy") for k in range(4)]
    for path, first, last in zip(paths, cuts, cuts[1:], strict=False):
        write_rows(path, values[first:last])
    rows = stack(paths)
    assert (rows.shape, len(rows)) == ((100, 8), 100)
    for first, last in ((0, 100), (29, 32), (31, 31), (95, 200)):
        assert (rows[first:last] == values[first:last]).all()
        assert rows[first:last].shape == values[first:last].shape
    some = np.random.default_rng(0).integers(100, size=40)
    assert (rows[some] == values[some]).all()
    assert rows[np.zeros(0, np.int64)].shape == (0, 8)
