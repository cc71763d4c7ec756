"""Verbs that are fakes and leave a file, and a small dataset."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rayface.cli.run import _Verb
from rayface.data.synth import synthesize
from rayface.experiment.verbs import VERBS

FILES = {"synth": "dataset.json", "convert": "dataset.json", "evaluate": "evaluation.json", "export": "model.onnx"}


class Fake(_Verb):
    """Reads its settings as the verb does, and only notes that it was called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__(name)
        self.calls, self.failure = calls, None

    def call(self, arguments: Sequence[str]) -> dict[str, Any]:
        values = self.parse(arguments)
        out = Path(values.get("out") or Path(values["onnx"]).parent)
        out.mkdir(parents=True, exist_ok=True)
        (out / "half").touch()
        self.calls.append(out.name)
        if self.failure is not None:
            raise self.failure
        (out / FILES[self._name]).write_text(json.dumps({"of": len(self.calls)}))
        return {"accuracy_mean": 0.5, "long": [1, 2], "model": values.get("model")}


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def fakes(calls: list[str]) -> dict[str, Fake]:
    return {verb: Fake(verb, calls) for verb in VERBS}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    synthesize(out, identities=4, images_per_identity=10, processes=1, image_size=32)
    return out
