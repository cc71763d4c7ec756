"""A set of embedding files is opened against its manifest; files of another shape are refused in one line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayface.embedding.embeddings import MANIFEST, check_one_model, open_embeddings
from rayface.embedding.part_file import write_part
from rayface.storage import DataError
from tests.embedding.embedding_files import KEYS, LABELS, VECTORS, put, table


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table().drop_columns(["label"])], "has no column label"),
        ([table(label=[str(k) for k in range(7)])], "label: is string, must be int64"),
        ([table(key=np.arange(7))], "key: is int64, must be string"),
        ([table(embedding=VECTORS[:, 0])], "embedding: is float, must be a list of float16 or float32"),
        ([table(embedding=LABELS[:, None].tolist())], "list<.*int64>, must be a list of float16 or float32"),
        ([table(), table(VECTORS[:, :4])], "length 4, in .*0.parquet it is float32 of length 8; all files must come"),
        ([table().slice(0, 0)], "has no rows"),
        ([], "no parquet files in this folder"),
    ],
)
def test_open_embeddings_of_another_shape_is_refused_in_one_line(
    tmp_path: Path, tables: list[pa.Table], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        open_embeddings(put(tmp_path, *tables))
    assert "\n" not in str(raised.value)


def test_open_embeddings_of_a_folder_that_differs_from_its_manifest_is_refused(listed: Path) -> None:
    """Missing files, other numbers of rows, unlisted files, a corrupt manifest."""
    assert open_embeddings(listed).num_rows == 14
    (listed / "part-0.parquet").rename(listed / "other.parquet")
    with pytest.raises(DataError, match=r"1 of 2 files in embeddings.json are missing \(.*part-0.parquet\)"):
        open_embeddings(listed)
    (listed / "part-0.parquet").write_bytes((listed / "other.parquet").read_bytes())
    with pytest.raises(DataError, match=r"other.parquet: is not in embeddings.json"):
        open_embeddings(listed)
    (listed / "other.parquet").unlink()
    batches = [(KEYS[:3], LABELS[:3], VECTORS[:3])]
    write_part(str(listed / "part-1.parquet"), batches, size=8, dtype="fp16", note={})
    with pytest.raises(DataError, match=r"part-1.parquet: has 3 rows, embeddings.json says 7: delete it"):
        open_embeddings(listed)
    (listed / "embeddings.json").write_text("{}")
    with pytest.raises(DataError, match=r"embeddings.json: cannot be read \(KeyError: 'parts'\): delete it"):
        open_embeddings(listed)


def test_open_embeddings_of_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder of embeddings$"):
        open_embeddings(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"^clean\.exclude: /.*nowhere: no such folder of embeddings$"):
        open_embeddings(tmp_path / "nowhere", "clean.exclude")


def test_embeddings_of_two_models_of_one_length_are_refused_together(tmp_path: Path) -> None:
    found = {}
    for name, model in (("a", "a" * 64), ("b", "b" * 64), ("exported", "a" * 64), ("unknown", None)):
        (tmp_path / name).mkdir()
        put(tmp_path / name, table())
        parts = [{"path": file.name, "num_rows": 7} for file in sorted((tmp_path / name).glob("*.parquet"))]
        digests = {"model_sha256": "f", "weights_sha256": model} if name == "exported" else {"model_sha256": model}
        manifest = {"parts": parts, **(digests if model else {})}
        (tmp_path / name / MANIFEST).write_text(json.dumps(manifest))
        found[name] = open_embeddings(tmp_path / name)
        assert found[name].model == model
    check_one_model(found["a"], found["a"], source_key="clustering.embeddings", key="clustering.assign")
    check_one_model(found["a"], found["exported"], source_key="clustering.embeddings", key="clustering.assign")
    check_one_model(found["a"], found["unknown"], source_key="clustering.embeddings", key="clustering.assign")
    refused = r"^clustering.assign: its embeddings are of the model b{12}, clustering.embeddings of a{12}: both"
    with pytest.raises(ValueError, match=refused):
        check_one_model(found["a"], found["b"], source_key="clustering.embeddings", key="clustering.assign")
