"""The measurement of a prune job: the drawn files, the projection, bad settings; the whole job is in test_curate."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface.bench import prune as bench
from rayface.bench.nms import WEBFACE42M_FACES


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"faces": 0}, "faces 0, identities"),
        ({"identities": 0}, "identities 0, embedding size"),
        ({"embedding_size": 0}, "embedding size 0: must be at least 1"),
        ({"faces": 10, "largest": 11}, "largest 11: from 0 to the number"),
        ({"largest": -1}, "largest -1"),
        ({"keep": 1.5}, r"1\.5"),
    ],
)
def test_bench_prune_with_a_bad_setting_raises_one_line(settings: dict[str, float], words: str) -> None:
    """Before Ray starts."""
    with pytest.raises(ValueError, match=words) as caught:
        bench.bench_prune(bench.PruneBench(**settings))
    assert "\n" not in str(caught.value)


def test_drawn_files_hold_all_images_in_no_order_and_one_large_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_FILE_ROWS", 40)
    monkeypatch.setattr(bench, "_BATCH_ROWS", 16)
    settings = bench.PruneBench(faces=100, identities=7, embedding_size=8, largest=30)
    bench._draw_files(tmp_path / "all", settings)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "all").iterdir())]
    assert [len(table) for table in tables] == [40, 40, 20]
    labels = np.concatenate([table["label"].to_numpy() for table in tables])
    assert (labels == 7).sum() == 30
    assert set(labels) <= set(range(8))
    assert (np.diff(labels) < 0).any()
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert keys == [f"{row:09d}" for row in range(100)]


def test_projected_hours_of_a_stage_of_one_process_do_not_shrink_with_cores() -> None:
    times = bench.PruneTimes(
        faces=WEBFACE42M_FACES,
        identities=1,
        embedding_size=1,
        keep=0.5,
        block_bytes=1,
        largest=0,
        cpus=2,
        files=1,
        embedding_bytes=1,
        threshold=0.5,
        kept=0.5,
        cpu_seconds=0.0,
        stage_seconds={"select": 10.0, "write": 10.0},
        driver_bytes=None,
        task_bytes=None,
    )
    found = times.as_dict()
    assert found["projected_hours_42m_64_cores"] == {
        "select": pytest.approx(10 / 3600 * 2 / 64),
        "write": pytest.approx(10 / 3600),
    }
    assert found["seconds"] == 20
    assert "driver_bytes" not in found
