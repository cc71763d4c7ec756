"""A protocol of a plugin, in one new file, is taken by `rayface evaluate` and by training."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rayface import config as configs
from rayface import plugins
from rayface.backbones import build_backbone
from rayface.cli import _outcome
from rayface.data.synth import synthesize
from rayface.evaluation.protocols import PROTOCOLS, protocol_class
from rayface.models.model_files import save_model

PLUGIN = """
from dataclasses import dataclass

import numpy as np

from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.evaluation.protocol import EvaluationProtocol, ProtocolResult
from rayface.evaluation.protocols import PROTOCOLS


@dataclass(frozen=True, kw_only=True)
class NearestResult(ProtocolResult):
    rank_1: float

    def figures(self):
        return {"rank_1": self.rank_1}

    @property
    def main_figure(self):
        return self.rank_1


class Nearest(EvaluationProtocol):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    @classmethod
    def is_configured(cls, settings):
        return bool(settings.data)

    @classmethod
    def open(cls, settings, *, image_size):
        dataset = open_dataset(settings.data)
        samples = read_samples(dataset.shard_paths(), dataset.index)
        return cls(decode_images([sample.jpeg for sample in samples], image_size)[0], dataset.index.label)

    @property
    def num_images(self):
        return len(self.images)

    def read_images(self, first, last):
        return self.images[first:last]

    def score(self, embeddings, done=lambda: None):
        cosines = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
        return NearestResult(rank_1=float((self.labels[cosines.argmax(axis=1)] == self.labels).mean()))


PROTOCOLS["nearest"] = Nearest
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_protocol.py").write_text(PLUGIN)
    yield "my_protocol"
    PROTOCOLS.pop("nearest", None)
    sys.modules.pop("my_protocol", None)


def test_protocol_of_a_plugin_is_measured_by_evaluate(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path / "faces", identities=4, images_per_identity=3, image_size=32, processes=1)
    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=16, image_size=32, width=0.25)
    facts = {"name": "mini", "backbone_args": {"width": 0.25}, "licence": "", "training_digest": "", "metrics": {}}
    save_model(tmp_path / "model", net, image_size=32, embedding_size=16, **facts)
    options = ["--model=model", "--protocol=nearest", "--data=faces", "--out=out", "--json"]
    assert _outcome(["evaluate", "--import", plugin, *options]) == (0, "")
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["rank_1"] <= 1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    config = configs.load("debug", overrides=["evaluate.protocol=nearest", f"evaluate.data={tmp_path / 'faces'}"])
    assert protocol_class(config.evaluate) is PROTOCOLS["nearest"]  # as training asks


def test_unknown_protocol_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.protocol: 'none': must be one of pairs, or added with --import$"):
        protocol_class(configs.load(overrides=["evaluate.protocol=none"]).evaluate)


def test_pairs_without_data_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.pairs: needs evaluate.data beside it"):
        protocol_class(configs.load(overrides=["evaluate.pairs=p.csv"]).evaluate)
    assert protocol_class(configs.load().evaluate) is None
