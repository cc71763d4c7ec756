"""Results that are not there, results that cannot be read, and records that are none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.experiment.record import Record
from rayface.experiment.verbs import VERBS, of_file


def test_a_result_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "model.json").mkdir()  # as a disk that is away: open fails, and not since there is none
    (tmp_path / "model.safetensors").touch()
    for mark in (of_file("model.json"), VERBS["train"].mark):
        (tmp_path / "result.json").touch()
        with pytest.raises(ValueError, match=r"model.json: cannot be read: Is a directory"):
            mark(tmp_path)
        assert mark(tmp_path / "nowhere") is None
        assert mark(tmp_path / "result.json") is None
    (tmp_path / "model.json").rmdir()
    for text in ("[]", "{}", "{"):
        (tmp_path / "model.json").write_text(text)
        assert VERBS["train"].mark(tmp_path) is None


def test_a_mark_beside_results_that_are_gone_is_none(tmp_path: Path) -> None:
    """Files of embeddings, the core set of prune.json, the weights of a run."""
    says = dict.fromkeys(("model_sha256", "dataset_digest", "flip", "precision", "dtype", "num_rows"), 1)
    manifest = {**says, "parts": [{"path": "part-000000.parquet", "num_rows": 1}]}
    (tmp_path / "embeddings.json").write_text(json.dumps(manifest))
    (tmp_path / "prune.json").write_text(json.dumps({"faces_in": 2, "found": {}}))
    (tmp_path / "model.json").write_text('{"sha256": "1"}')
    (tmp_path / "result.json").write_text("{}")
    verbs = {"embed": "part-000000.parquet", "prune": "report.html", "train": "model.safetensors"}
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "core_set.parquet")
    for verb, name in verbs.items():
        assert VERBS[verb].mark(tmp_path) is None
        (tmp_path / name).touch()
        assert VERBS[verb].mark(tmp_path) is not None
    (tmp_path / "core_set.parquet").unlink()
    assert VERBS["prune"].mark(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", '{"stages": []}', "{}", "{"])
def test_a_record_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ValueError, match=r"experiment.json: cannot be read: .*delete it"):
        Record(tmp_path)
