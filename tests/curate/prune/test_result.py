"""The result of a prune job: read back, and None unless all of its files are whole."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.curate.prune.result import (
    DatasetCounts,
    ImageCounts,
    JobFacts,
    PruneResult,
    SelectionFigures,
    read_result,
)
from rayface.tracking.job import Tracked

TRACKING = ("tracking", "tracking_delivered", "tracking_link")


def result() -> PruneResult:
    """Two of three images are kept."""
    return PruneResult(
        method="face_nms",
        threshold=0.5,
        keep_wanted=None,
        keep=2 / 3,
        counts=ImageCounts(faces_in=3, faces_cleaned=0, faces_out=2, identities=1),
        found={"outliers": 0},
        mean_cosine_before=0.5,
        mean_cosine_after=0.4,
        baselines={"random": SelectionFigures(faces=2, mean_cosine=0.5, shared=0.5)},
        stage_seconds={"choose": 0.1},
        dataset=DatasetCounts(images=2, classes=1, shards=2, not_embedded=0),
        job=JobFacts(seconds=0.2, embeddings="emb", config={"seed": 0}, created_by="rayface"),
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The files of a job that looked for outliers and wrote shards of its own."""
    pq.write_table(pa.table({"key": ["a", "b", "c"]}), tmp_path / "core_set.parquet")
    (tmp_path / "found").mkdir()
    for name in ("report.html", "index.parquet", "found/outliers.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "shard-000000.tar").write_bytes(b"12345")
    shards = [{"path": "shard-000000.tar", "num_bytes": 5}, {"path": "/elsewhere/shard-000007.tar", "num_bytes": 9}]
    (tmp_path / "dataset.json").write_text(json.dumps({"shards": shards}))
    (tmp_path / "prune.json").write_text(json.dumps(result().as_dict()))
    return tmp_path


def test_read_result_of_a_finished_job_returns_it(finished: Path) -> None:
    assert read_result(finished) == result()


def test_as_dict_of_a_tracked_job_says_where() -> None:
    tracked = replace(
        result(), dataset=None, tracked=Tracked(uri="sqlite:///x", delivered=True, link="http://x")
    ).as_dict()
    assert [tracked[name] for name in TRACKING] == ["sqlite:///x", True, "http://x"]
    assert not {"tracked", "dataset"} & tracked.keys()
    assert "tracking" not in result().as_dict()


def test_read_result_without_a_key_raises_one_line(finished: Path) -> None:
    values = {key: value for key, value in result().as_dict().items() if key != "faces_in"}
    (finished / "prune.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"prune.json: is corrupt \(TypeError: .*'faces_in'"):
        read_result(finished)


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
def test_read_result_without_one_of_its_files_is_none(finished: Path, name: str) -> None:
    (finished / name).unlink()
    assert read_result(finished) is None


def test_read_result_with_a_cut_file_is_none(finished: Path) -> None:
    """A shard of another size, or a core set with other rows or that cannot be read."""
    (finished / "shard-000000.tar").write_bytes(b"123")
    assert read_result(finished) is None
    (finished / "shard-000000.tar").write_bytes(b"12345")
    pq.write_table(pa.table({"key": ["a", "b"]}), finished / "core_set.parquet")
    assert read_result(finished) is None
    (finished / "core_set.parquet").write_bytes(b"PAR1")
    assert read_result(finished) is None


def test_read_result_of_corrupt_json_raises_one_line(finished: Path) -> None:
    (finished / "prune.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"prune.json: is corrupt \(JSONDecodeError: .*delete it and run again"
    ) as raised:
        read_result(finished)
    assert "\n" not in str(raised.value)


def test_decisions_as_a_data_frame_are_those_of_the_core_set(finished: Path) -> None:
    found = read_result(finished)
    assert found is not None
    assert found.to_pandas()["key"].tolist() == ["a", "b", "c"]
    assert "folder" not in found.as_dict()
