"""The stages of an experiment file, ready to run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayface.experiment import runner
from rayface.experiment.runner import prepare
from rayface.experiment.spec import load


def prepared_of(text: str, fakes: Mapping[str, Any], tmp_path: Path) -> list[runner.Prepared]:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    return prepare(load(file, []), tmp_path / "out")
