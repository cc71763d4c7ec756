"""The kit as it is run on a machine with a GPU: as a program, with few packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayface.bench.gpu.__main__ import app
from rayface.bench.gpu.parts import PARTS

ROOT = Path(__file__).parents[3]


def lean(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where only the packages of the kit are installed."""
    (folder / "sitecustomize.py").write_text((Path(__file__).parent / "lean_site.py").read_text())
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.long
def test_kit_where_only_its_packages_are_installed_runs_every_part(tmp_path: Path) -> None:
    ended = lean(tmp_path, "-m", "rayface.bench.gpu", "--out", str(tmp_path / "out"), "--minutes", "10")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["parts"]) == [part.key for part in PARTS]
    statuses = {case["status"] for part in found["parts"].values() for case in part["cases"]}
    assert statuses == {"passed"}, ended.stdout
    assert "torch" in found["machine"]["packages"]


@pytest.mark.parametrize("code", ["import ray", "import rayface.config", "__name__ = 'rayface.x'; import pydantic"])
def test_lean_python_when_another_package_is_imported_fails(tmp_path: Path, code: str) -> None:
    """The check of the test above: hidden packages, and those that rayface must not import though typer does."""
    ended = lean(tmp_path, "-c", code)
    assert ended.returncode == 1
    assert "ModuleNotFoundError" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "a,q"], "--parts: 'q': must be some of a, b"),
        (["--device", "tpu"], "device: 'tpu': must be auto, cpu or cuda"),
        (["--device", "cuda"], "--device: cuda: PyTorch sees no GPU here"),
    ],
)
def test_main_with_bad_arguments_says_so_in_one_line(
    tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ended = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), *arguments])
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
