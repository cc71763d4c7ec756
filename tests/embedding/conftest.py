"""A folder of embeddings with its manifest."""

import json
from pathlib import Path

import pytest

from rayface.embedding.part_file import write_part
from tests.embedding.embedding_files import KEYS, LABELS, VECTORS


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two files and the manifest that names them."""
    for number in range(2):
        write_part(str(tmp_path / f"part-{number}.parquet"), [(KEYS, LABELS, VECTORS)], size=8, dtype="fp16", note={})
    parts = [{"path": f"part-{number}.parquet", "num_rows": 7} for number in range(2)]
    (tmp_path / "embeddings.json").write_text(json.dumps({"parts": parts}))
    return tmp_path
