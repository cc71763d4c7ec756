"""Curation into a store on several nodes without a shared disk: all work, and any of them may be lost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.curate.prune.core_set import prune
from rayface.embedding.part_file import write_part
from tests.integration.prune_on_nodes import config

SIZE = 16


@pytest.fixture
def shuffled(tmp_path: Path) -> Path:
    """Embeddings of 60 people in no order, so that they are sorted through work files."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(60), 20))
    centers = random.standard_normal((60, SIZE))
    vectors = (centers[labels] + random.standard_normal((1200, SIZE)) / 2).astype(np.float32)
    (tmp_path / "emb").mkdir()
    for part in range(4):
        rows = slice(300 * part, 300 * (part + 1))
        batch = ([f"{row:05d}" for row in range(1200)[rows]], labels[rows], vectors[rows])
        write_part(str(tmp_path / "emb" / f"{part}.parquet"), [batch], size=SIZE, dtype="fp32", note={})
    return tmp_path / "emb"


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_prune_into_a_store_works_on_all_nodes_and_resumes_without_one_from_another(
    shuffled: Path, tmp_path: Path, object_store: Any
) -> None:
    prune(config(str(shuffled), str(tmp_path / "core")))
    uri = object_store.uri("core")
    command = [sys.executable, "-m", "tests.integration.prune_on_nodes", str(tmp_path / "nodes"), str(shuffled), uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    by = {name: {path.partition("/")[2].partition("/")[0] for path in paths} for name, paths in before.items()}
    assert by["one"] >= {"runs", "decisions"}
    assert by["two"] >= {"runs", "decisions"}
    assert not by["elsewhere"]
    assert {name: paths for name, paths in after.items() if name != "two"} == {
        "head": [],
        "one": [],
        "elsewhere": [],
    }
    assert object_store.files()["core/core_set.parquet"] == (tmp_path / "core" / "core_set.parquet").read_bytes()
    assert set(object_store.files()) == {
        f"core/{path.relative_to(tmp_path / 'core').as_posix()}"
        for path in (tmp_path / "core").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
