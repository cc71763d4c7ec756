"""Stages that are fakes and leave a file, and a small dataset."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rayface.config import Config, flat
from rayface.data.synth import synthesize
from rayface.stages import STAGES

FILES = {"synth": "dataset.json", "convert": "dataset.json", "evaluate": "evaluation.json", "export": "model.onnx"}


@dataclass
class Fake:
    """Takes the place of a stage's function: notes the call, and leaves a file or fails."""

    verb: str
    calls: list[str]
    failure: BaseException | None = None
    configs: list[tuple[Config, bool]] = field(default_factory=list)
    call: Callable[[Config], dict[str, Any]] | None = None

    def __call__(self, config: Config, resume: bool) -> dict[str, Any]:
        self.configs.append((config, resume))
        if self.call is not None:
            return self.call(config)
        out = Path(flat(config)[STAGES[self.verb].output])
        folder = out.parent if STAGES[self.verb].file else out
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").touch()
        self.calls.append(folder.name)
        if self.failure is not None:
            raise self.failure
        (folder / FILES[self.verb]).write_text(json.dumps({"of": len(self.calls)}))
        return {"accuracy_mean": 0.5, "long": [1, 2], "model": flat(config).get(f"{self.verb}.model")}


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def fakes(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    found = {verb: Fake(verb, calls) for verb in STAGES}
    for verb, fake in found.items():
        monkeypatch.setitem(STAGES, verb, replace(STAGES[verb], function=fake))
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    synthesize(out, identities=4, images_per_identity=10, processes=1, image_size=32)
    return out
