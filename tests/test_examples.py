"""The scripts of examples/ that no other test runs."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from rayface.data.synth import synthesize
from rayface.experiment.spec import load

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.long
def test_plain_pytorch_on_a_small_dataset_prints_its_speed(tmp_path: Path) -> None:
    synthesize(tmp_path / "images", identities=4, images_per_identity=4, image_size=64)
    options = ["--steps", "5", "--batch-size", "8", "--threads", "1"]
    script = [sys.executable, str(EXAMPLES / "plain_pytorch.py"), str(tmp_path / "images"), *options]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "images/s (median), loss" in done.stdout


@pytest.mark.parametrize("name", ["crawl", "curation", "generations"])
def test_experiments_of_examples_refer_to_earlier_stages(name: str) -> None:
    experiment = load(EXAMPLES / f"{name}.yaml", [])
    assert len(experiment.stages) > 3
    assert any(stage.references() for stage in experiment.stages)


def test_demo_run_again_keeps_the_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_run = runpy.run_path(str(EXAMPLES / "demo.py"))["new_run"]
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(3):
        found.append(new_run())
        found[-1].mkdir(parents=True)
    assert [str(path) for path in found] == ["demo/run", "demo/run-2", "demo/run-3"]
