"""The road of an experiment on a real local Ray: embeddings, core set, two generations of students; then again."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface import cli
from rayface import config as configs
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.models.model_files import LoadedModel, load_model, save_model
from rayface.training.builders import build_config_backbone

pytestmark = pytest.mark.usefixtures("local_ray")

FILE = """
config:
  tracking.enabled: false
  data.window_images: 60
stages:
  - name: emb
    embed: {model: TEACHER, data: DATA}
  - name: core
    prune: {embeddings: "${emb}", data: DATA, keep: 0.6}
  - name: g1
    train:
      preset: debug
      data.train: ${core}
      backbone.width: 0.25
      train: {teacher: TEACHER, batch_size: 48}
  - name: g2
    train: {preset: debug, data.train: DATA, backbone: {width: 0.25, weights: "${g1}"}, train.teacher: TEACHER,
            train.teacher_cache: "${emb}"}
  - name: onnx
    export: {model: "${g2}"}
  - name: onnx_emb
    embed: {model: "${onnx}", data: DATA}
  - name: scores
    evaluate: {model: "${onnx}", pairs: DATA/pairs.csv, data: DATA}
"""


def check_embeddings(folder: Path, model: LoadedModel, data: Path) -> None:
    """What the job wrote by the exported model, through Ray's actors, against the net itself."""
    dataset = open_dataset(data)
    samples = read_samples(dataset.shard_paths(), dataset.index)
    wanted = model.embed(decode_images([sample.jpeg for sample in samples], 32)[0])
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
    rows = dict(zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    np.testing.assert_allclose([rows[sample.key] for sample in samples], wanted, atol=1e-3)  # kept as float16


@pytest.mark.long
def test_run_of_generations_and_a_core_set_from_one_file_ends_with_all_results(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = build_config_backbone(configs.load("debug"))
    facts = {"licence": "", "training_digest": "", "metrics": {}}
    sizes = {"backbone_args": {"width": 0.5}, "image_size": 32, "embedding_size": 64}
    save_model(tmp_path / "teacher", teacher, name="mini", **sizes, **facts)
    file, out = tmp_path / "road.yaml", tmp_path / "out"
    file.write_text(FILE.replace("DATA", str(drawn)).replace("TEACHER", str(tmp_path / "teacher")))

    def run() -> dict[str, dict]:
        monkeypatch.setattr(sys, "argv", ["rayface", "run", str(file), f"--out={out}", "--json", "train.log_every=1"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text, error = capsys.readouterr()
        assert ended.value.code in (0, None), error
        return {stage["name"]: stage for stage in json.loads(text)["stages"]}

    done = run()
    assert list(done) == ["emb", "core", "g1", "g2", "onnx", "onnx_emb", "scores"]
    assert not any(stage["skipped"] for stage in done.values())
    assert done["emb"]["result"]["num_rows"] == 240
    assert done["core"]["result"]["faces_out"] == pytest.approx(144, abs=2)
    assert done["g1"]["result"]["steps"] == done["core"]["result"]["faces_out"] // 48
    assert done["g2"]["result"]["steps"] == 240 // 32
    assert done["scores"]["result"]["num_pairs"] == 100
    check_embeddings(out / "onnx_emb", load_model(out / "g2"), drawn)
    again = run()
    assert all(stage["skipped"] for stage in again.values())  # also the embeddings that served as a teacher's cache
    assert {name: stage["result"] for name, stage in again.items()} == {n: s["result"] for n, s in done.items()}
