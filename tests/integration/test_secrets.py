"""The road of credentials in URIs through data, outputs and MLflow: no file and no output holds them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayface import cli
from rayface import config as configs
from rayface.backbones import build_backbone
from rayface.models.model_files import save_model

pytestmark = pytest.mark.usefixtures("local_ray")
PLANTED = "pl4nted"
SMALL = {"name": "mini", "backbone_args": {"width": 0.25}, "embedding_size": 16, "image_size": 32}


@pytest.mark.long
def test_jobs_with_credentials_in_uris_write_and_print_none_of_them(object_store, tmp_path, monkeypatch, capfd):
    store = replace(object_store, key="AKIAPL4NTED", secret=f"{PLANTED}/with@signs")
    uri = f"tracking.uri=http://me:{PLANTED}@127.0.0.1:9/?token={PLANTED}"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"{PLANTED}-{name.lower()}")
    monkeypatch.chdir(tmp_path)
    printed = []

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rayface", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed.extend(capfd.readouterr())
        return int(ended.value.code or 0)

    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=16, image_size=32, width=0.25)
    save_model("model", net, **SMALL, licence="", training_digest="", metrics={})
    data, emb = store.uri("set"), store.uri("emb")
    tracking = [uri, "tracking.timeout=0"]
    shape = ["--identities=40", "--images-per-identity=3", "--pairs=40", "--image-size=32", "--json"]
    assert call("synth", data, *shape) == 0
    Path("pairs.csv").write_bytes(object_store.files()["set/pairs.csv"])
    assert call("check", store.uri("nothing"), "--debug") == 2
    assert call("check", f"{data}&token={PLANTED}") == 2
    assert call("embed", "--model=model", f"--data={data}", f"--out={emb}", *tracking) == 0
    assert call("evaluate", "--model=model", f"--data={data}", "--pairs=pairs.csv", f"--out={store.uri('scores')}") == 0
    assert call("prune", f"--embeddings={emb}", f"--data={data}", "--keep=.6", "--out=core", *tracking) == 0
    backbone = ["backbone.name=mini", "backbone.width=.25", "backbone.embedding_size=16", "data.image_size=32"]
    training = ["train.epochs=1", "train.batch_size=60", "train.output=run", "train.device=cpu"]
    paths = [f"data.train={data}", f"evaluate.data={data}", "evaluate.pairs=pairs.csv"]
    assert call("train", *paths, *backbone, *training, *tracking) == 0
    assert call("train", "--resume", *training) == 2  # it is finished
    assert call("sync", emb) == 2
    assert call("check", f"s3://nowhere/{PLANTED}-hf_token?endpoint_override={store.endpoint}&scheme=http") == 2

    assert f"set?endpoint_override={store.endpoint}" in (tmp_path / "run" / "config.yaml").read_text()
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"prune.json", "dataset.json", "result.json", "tracking.json"} <= {Path(name).name for name in written}
    for name, content in {**written, **object_store.files(), "printed": "".join(printed).encode()}.items():
        assert PLANTED.encode() not in content, name
        assert store.key.encode() not in content, name


def test_run_resumed_with_credentials_given_again_keeps_none(tmp_path):
    from rayface.training.run_output import check_output

    first = configs.load(overrides=[f"data.train=s3://K:{PLANTED}@bucket/a", f"train.output={tmp_path}"])
    configs.dump(first, tmp_path / "config.yaml")
    assert configs.load(file=tmp_path / "config.yaml").data.train == ("s3://***@bucket/a",)
    for data in (f"s3://K:{PLANTED}@bucket/a", "s3://L:new@bucket/a", "s3://bucket/a"):
        check_output(configs.with_overrides(first, {"data.train": data}), resume=True)
