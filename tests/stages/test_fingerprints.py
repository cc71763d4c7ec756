"""Fingerprints of results: missing ones, unreadable ones, and those whose files are gone."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.stages import STAGES
from rayface.stages.fingerprints import of_file
from tests.data.shard_files import small_dataset


def test_fingerprint_of_a_result_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
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


def test_fingerprint_of_a_result_whose_files_are_gone_is_none(tmp_path: Path) -> None:
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
    embedded = STAGES["embed"].fingerprint(tmp_path)
    for field in (*says, "seconds"):
        (tmp_path / "embeddings.json").write_text(json.dumps({**manifest, field: 2}))
        assert (STAGES["embed"].fingerprint(tmp_path) == embedded) == (field == "seconds"), field
    (tmp_path / "core_set.parquet").unlink()
    assert STAGES["prune"].fingerprint(tmp_path) is None


def test_fingerprint_of_a_dataset_whose_shards_are_gone_is_none(tmp_path: Path) -> None:
    data, copy = small_dataset(tmp_path), tmp_path / "copy"
    shutil.copytree(data, copy)
    mark = STAGES["convert"].fingerprint
    assert mark(copy) == mark(data) is not None
    shard = next(copy.glob("*.tar"))
    with shard.open("ab") as file:
        file.write(b"\0")
    assert mark(copy) is None
    shard.unlink()
    assert mark(copy) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"shards": [{}]}'])
def test_fingerprint_of_a_dataset_with_a_corrupt_manifest_is_another_one(tmp_path: Path, text: str) -> None:
    data = small_dataset(tmp_path)
    whole = STAGES["synth"].fingerprint(data)
    (data / "dataset.json").write_text(text)
    found = STAGES["synth"].fingerprint(data)
    assert found is not None
    assert found != whole
