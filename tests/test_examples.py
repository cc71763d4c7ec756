"""The scripts of examples/ that no other test runs."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from rayface.data.synth import synthesize
from rayface.experiment.spec import load

EXAMPLES = Path(__file__).parent.parent / "examples"


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


def test_class_layers_without_epochs_prints_the_table_of_the_results_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {"data": "celeba", "method": "DCQ", "epochs": 10.0, "interval": [0.7, 0.8], "head_bytes": 5_000_000}
    runs = [{**case, "seed": seed, "accuracy": 0.74 + 0.02 * seed, "images_per_second": 300 + seed} for seed in (0, 1)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    monkeypatch.setattr(sys, "argv", ["class_layers.py", "faces", str(tmp_path), "--epochs", "0"])
    runpy.run_path(str(EXAMPLES / "class_layers.py"), run_name="__main__")
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| celeba | DCQ | 10 | 75.0% ± 1.4% | 74.0% [70.0%, 80.0%], 76.0% [70.0%, 80.0%] | ")
    assert row.endswith(" | 5.0 |")


def test_demo_run_again_keeps_the_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_run = runpy.run_path(str(EXAMPLES / "demo.py"))["new_run"]
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(3):
        found.append(new_run())
        found[-1].mkdir(parents=True)
    assert [str(path) for path in found] == ["demo/run", "demo/run-2", "demo/run-3"]
