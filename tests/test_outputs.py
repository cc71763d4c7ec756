"""What names an output on an object store is written there or refused; never a local folder called `s3:`."""

import sys
from pathlib import Path

import pytest
import torch

from rayface import cli
from rayface.backbones import build_backbone
from rayface.config import load
from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.evaluation.evaluate import evaluate
from rayface.models.model_files import save_model

URI = "s3://bucket/out"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--model=m", f"--onnx={URI}/m.onnx"],
        ["prune", "--embeddings=e", "--keep=.5", f"--out={URI}"],
        ["prune", "--proxy-fraction=.1", "--data=d", "--keep=.5", f"--out={URI}"],
        ["checkpoint", "export", "run", f"--out={URI}"],
        ["checkpoint", "reshard", "run", f"--out={URI}"],
        ["train", "data.train=d", f"train.output={URI}"],
        ["plan", "--gpus=1", f"--plot={URI}.png"],
        ["bench", "prune", f"--directory={URI}"],
        ["bench", "checkpoint", f"--directory={URI}"],
        ["tune", "sweep.yaml", f"sweep.output={URI}"],
        ["run", "experiment.yaml", f"--out={URI}"],
    ],
)
def test_an_output_that_must_be_on_a_disk_is_refused_where_it_is_a_uri(here, monkeypatch, capsys, arguments):
    files = {
        "sweep.yaml": "config: {data: {train: d}, evaluate: {pairs: p, data: d}}\nsearch: {optim.lr: [0.1, 0.2]}\n",
        "experiment.yaml": "stages: [{name: a, synth: {}}]\n",
    }
    for name in files.keys() & set(arguments):
        (here / name).write_text(files[name])
    before = sorted(here.iterdir())
    monkeypatch.setattr(sys, "argv", ["rayface", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert f"{URI}" in err
    assert "must be a path on a disk that all nodes share, not a URI: mount the storage" in err
    assert sorted(here.iterdir()) == before


def test_a_dataset_and_an_evaluation_are_written_to_an_object_store(here, tmp_path, object_store):
    data = object_store.uri("set")
    synthesize(data, identities=40, images_per_identity=3, image_size=32, processes=1, pairs=40)
    shard = object_store.files()["set/shard-000000.tar"]
    assert open_dataset(data).num_images == 120
    copy, _ = object_store.uri("bare"), (tmp_path / "pairs.csv").write_bytes(object_store.files()["set/pairs.csv"])
    object_store.put("bare/a.tar", shard)
    assert check(copy, write_manifest=True).ok
    assert {"bare/dataset.json", "bare/index.parquet"} <= set(object_store.files())

    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=16, image_size=32, width=0.25)
    facts = {"name": "mini", "backbone_args": {"width": 0.25}, "licence": "", "training_digest": "", "metrics": {}}
    save_model(tmp_path / "model", net, image_size=32, embedding_size=16, **facts)
    out = object_store.uri("scores")
    given = {"model": str(tmp_path / "model"), "pairs": str(tmp_path / "pairs.csv"), "data": data, "out": out}
    result = evaluate(load(overrides={f"evaluate.{key}": value for key, value in given.items()}))
    assert result["num_pairs"] == 40
    files = object_store.files()
    assert files["scores/plots/roc.png"].startswith(b"\x89PNG")
    assert b'"num_pairs": 40' in files["scores/evaluation.json"]
    assert list(here.iterdir()) == []
