"""Results that are not there, results that cannot be read, and records that are none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.experiment.record import Record, changed_key
from rayface.stages import STAGES
from rayface.stages.fingerprints import of_file


def test_a_result_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "model.json").mkdir()  # as a disk that is away: open fails, and not since there is none
    (tmp_path / "model.safetensors").touch()
    for mark in (of_file("model.json"), STAGES["train"].fingerprint):
        (tmp_path / "result.json").touch()
        with pytest.raises(ValueError, match=r"model.json: cannot be read: Is a directory"):
            mark(tmp_path)
        assert mark(tmp_path / "nowhere") is None
        assert mark(tmp_path / "result.json") is None
    (tmp_path / "model.json").rmdir()
    for text in ("[]", "{}", "{"):
        (tmp_path / "model.json").write_text(text)
        assert STAGES["train"].fingerprint(tmp_path) is None


def test_a_mark_beside_results_that_are_gone_is_none(tmp_path: Path) -> None:
    """Files of embeddings, the core set of prune.json, the weights of a run."""
    says = dict.fromkeys(("model_sha256", "dataset_digest", "flip", "precision", "dtype", "num_rows"), 1)
    manifest = {**says, "parts": [{"path": "part-000000.parquet", "num_rows": 1}]}
    (tmp_path / "embeddings.json").write_text(json.dumps(manifest))
    numbers = ("threshold", "keep_wanted", "keep", "faces_cleaned", "faces_out", "identities", "seconds")
    cosines = ("mean_cosine_before", "mean_cosine_after")
    tables = {key: {} for key in ("found", "baselines", "stage_seconds", "config")}
    texts = dict.fromkeys(("method", "embeddings", "created_by"), "x")
    pruned = {**dict.fromkeys((*numbers, *cosines), 1), **tables, **texts, "faces_in": 2}
    (tmp_path / "prune.json").write_text(json.dumps(pruned))
    (tmp_path / "model.json").write_text('{"sha256": "1"}')
    (tmp_path / "result.json").write_text("{}")
    verbs = {"embed": "part-000000.parquet", "prune": "report.html", "train": "model.safetensors"}
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "core_set.parquet")
    for verb, name in verbs.items():
        assert STAGES[verb].fingerprint(tmp_path) is None
        (tmp_path / name).touch()
        assert STAGES[verb].fingerprint(tmp_path) is not None
    (tmp_path / "core_set.parquet").unlink()
    assert STAGES["prune"].fingerprint(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", '{"stages": []}', "{}", "{"])
def test_a_record_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ValueError, match=r"experiment.json: cannot be read: .*delete it"):
        Record(tmp_path)


def test_record_of_an_earlier_version_is_read_by_config_key(tmp_path: Path) -> None:
    """Settings and inputs were named by the options of the command line, values as text."""
    settings = {"embeddings": "${emb}", "keep": 0.6, "baseline": ["herding"], "block_size": "64MB", "drop": None}
    stage = {"verb": "prune", "settings": settings, "inputs": {"stage emb": "m", f"data {tmp_path}": "d"}}
    ended = {**stage, "mark": "x", "seconds": 1.0, "result": {}}
    (tmp_path / "experiment.json").write_text(json.dumps({"stages": {"core": ended}}))
    done = Record(tmp_path).finished("core")
    assert done is not None
    wanted = {
        "prune.keep": 0.6,
        "prune.baselines": ["herding"],
        "prune.block_size": 2**26,
        "prune.embeddings": "${emb}",
    }
    assert changed_key(done.settings, wanted) is None
    assert changed_key(done.settings, {**wanted, "prune.keep": 0.5}) == "prune.keep"
    assert done.inputs == {"stage emb": "m", f"prune.data {tmp_path}": "d"}
