"""A finished prune job is one whose results are there."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.curate.prune.result import read_result


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What a job leaves that looked for outliers and wrote shards of its own."""
    pq.write_table(pa.table({"key": ["a", "b", "c"]}), tmp_path / "core_set.parquet")
    (tmp_path / "found").mkdir()
    for name in ("report.html", "index.parquet", "found/outliers.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "shard-000000.tar").write_bytes(b"12345")
    shards = [{"path": "shard-000000.tar", "num_bytes": 5}, {"path": "/elsewhere/shard-000007.tar", "num_bytes": 9}]
    (tmp_path / "dataset.json").write_text(json.dumps({"shards": shards}))
    result = {"faces_in": 3, "found": {"outliers": 0}, "dataset": {"images": 2}}
    (tmp_path / "prune.json").write_text(json.dumps(result))
    return tmp_path


def test_a_whole_result_is_read(finished: Path) -> None:
    found = read_result(finished)
    assert found is not None
    assert found["faces_in"] == 3


@pytest.mark.parametrize(
    "name",
    [
        "prune.json",
        "core_set.parquet",
        "report.html",
        "found/outliers.parquet",
        "dataset.json",
        "index.parquet",
        "shard-000000.tar",
    ],
)
def test_a_result_that_is_gone_makes_the_job_unfinished(finished: Path, name: str) -> None:
    (finished / name).unlink()
    assert read_result(finished) is None


def test_a_result_that_is_cut_makes_the_job_unfinished(finished: Path) -> None:
    """A shard of another size, a core set of other rows or none that can be read."""
    (finished / "shard-000000.tar").write_bytes(b"123")
    assert read_result(finished) is None
    (finished / "shard-000000.tar").write_bytes(b"12345")
    pq.write_table(pa.table({"key": ["a", "b"]}), finished / "core_set.parquet")
    assert read_result(finished) is None
    (finished / "core_set.parquet").write_bytes(b"PAR1")
    assert read_result(finished) is None


def test_a_damaged_mark_is_refused_in_one_line(finished: Path) -> None:
    (finished / "prune.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"prune.json: is damaged \(JSONDecodeError: .*delete it and run again"
    ) as raised:
        read_result(finished)
    assert "\n" not in str(raised.value)
