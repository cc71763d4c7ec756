"""Plugins: modules of users by --import and by entry point, in the command and in every Ray worker."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface import plugins
from rayface.cli.command_line import _outcome
from rayface.heads import HEADS, MARGINS, CosFace, build_margin

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(plugins, "_entry_points", lambda: ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = dict(HEADS), dict(MARGINS)
    yield
    for registry, content in zip((HEADS, MARGINS), before, strict=True):
        registry.clear()
        registry.update(content)
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)


def write_plugin(name: str) -> None:
    Path(f"{name}.py").write_text(f"from rayface.heads import MARGINS, CosFace\nMARGINS['{name}'] = CosFace\n")


def test_import_option_repeated_loads_modules_of_the_working_directory(tmp_path: Path) -> None:
    write_plugin("one_margin")
    write_plugin("other_margin")
    options = ["--import", "one_margin", "--import", "other_margin"]
    code, message = _outcome(["train", *options, "head.margin=one_margin", f"data.train={tmp_path / 'none'}"])
    assert code == 2
    assert "data.train" in message or "none" in message
    assert {"one_margin", "other_margin"} <= MARGINS.keys()
    environment = plugins.runtime_env()
    assert environment is not None
    assert json.loads(environment["env_vars"]["RAYFACE_PLUGINS"]) == ["one_margin", "other_margin"]


@pytest.mark.parametrize("verb", ["train", "plan", "backbones"])
def test_import_of_an_unknown_module_is_one_line_and_exit_code_2(verb: str) -> None:
    code, message = _outcome([verb, "--import", "no_such_module"])
    assert code == 2
    assert message.startswith("plugin: no_such_module: cannot be imported: no such module in the working directory")
    assert "\n" not in message


def test_import_of_a_broken_module_names_its_error() -> None:
    Path("broken_plugin.py").write_text("import module_that_it_lacks\n")
    code, message = _outcome(["plan", "--import", "broken_plugin"])
    assert code == 2
    assert "ModuleNotFoundError: No module named 'module_that_it_lacks'" in message


def test_entry_point_is_loaded_without_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin("packaged_margin")
    monkeypatch.syspath_prepend(os.getcwd())
    point = EntryPoint("margin", "packaged_margin", plugins.GROUP)
    monkeypatch.setattr(plugins, "_entry_points", lambda: (point,))
    plugins.ensure_loaded()
    assert "packaged_margin" in MARGINS


def test_resume_command_imports_the_plugins_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugins.resume_command("train", "--resume") == "rayface train --resume"
    monkeypatch.setattr(plugins, "_loaded", ["one", "two.three"])
    assert plugins.resume_command("run", "my file.yaml") == "rayface run 'my file.yaml' --import one --import two.three"


def test_runtime_environment_without_plugins_is_none() -> None:
    plugins.load_plugins()
    assert plugins.runtime_env() is None


def test_worker_loads_the_plugins_of_the_driver_when_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin("driver_margin")
    monkeypatch.setenv("RAYFACE_PLUGINS", '["driver_margin"]')
    assert isinstance(build_margin("driver_margin"), CosFace)


def test_worker_without_the_module_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFACE_PLUGINS", '["no_such_module"]')
    with pytest.raises(ValueError, match="plugin: no_such_module: cannot be imported: no such module"):
        build_margin("cosface")


@pytest.mark.long
def test_documented_head_of_a_plugin_trains_with_two_workers(tmp_path: Path, ray_address: str) -> None:
    from rayface.data.synth import synthesize

    example = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    assert example is not None
    assert len([line for line in example[1].splitlines() if line]) <= 45
    (tmp_path / "my_heads.py").write_text(example[1])
    synthesize(tmp_path / "faces", identities=6, images_per_identity=8, processes=1)
    command = [sys.executable, "-m", "rayface.cli", "train", "--import", "my_heads", "--json"]
    start = ["--preset", "debug", "head.name=mine", "backbone.name=tiny", "backbone.width=null", "data.train=faces"]
    keys = ["train.num_workers=2", "train.output=run", "tracking.enabled=false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ray_address}

    done = subprocess.run(
        [*command, *start, *keys, "train.epochs=2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_documented_selection_method_of_a_plugin_prunes_beside_baselines(tmp_path: Path, ray_address: str) -> None:
    from rayface.embedding.part_file import write_part

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    (tmp_path / "my_method.py").write_text(next(block for block in blocks if "METHODS" in block))
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    vectors = random.standard_normal((5, 16))[labels] + random.standard_normal((40, 16))
    (tmp_path / "emb").mkdir()
    rows = [([f"k{row:02d}" for row in range(40)], labels, vectors)]
    write_part(str(tmp_path / "emb" / "0.parquet"), rows, size=16, dtype="fp32", note={})
    command = [sys.executable, "-m", "rayface.cli", "prune", "--import", "my_method", "--json", "--embeddings", "emb"]
    keys = [
        "prune.method=mine",
        "prune.keep=0.1",
        "prune.block_size=800B",
        "prune.options.least=2",
        "prune.baselines=[face_nms]",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ray_address}

    done = subprocess.run(
        [*command, "--out", "core", *keys, "prune.block_size=800B", "tracking.enabled=false"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["method"], result["threshold"], result["faces_out"]) == ("mine", None, 10)
    assert set(result["baselines"]) == {"random", "face_nms"}
    table = pq.read_table(tmp_path / "core" / "core_set.parquet").to_pydict()
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = [float(units[row] @ units[labels == labels[row]].mean(axis=0)) for row in range(40)]
    own = np.array([cosine[int(key[1:])] for key in table["key"]]).reshape(5, 8)
    kept = np.array(table["kept"]).reshape(5, 8)
    assert kept.sum(axis=1).tolist() == [2] * 5
    assert (np.where(kept, own, -2).max(axis=1) < np.where(kept, 2, own).min(axis=1)).all()
    assert {reason for reason, stays in zip(table["reason"], table["kept"], strict=True) if not stays} == {
        "near the mean"
    }
