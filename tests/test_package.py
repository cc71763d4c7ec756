"""What `import rayface` opens, and that it costs nothing."""

import ast
import re
import subprocess
import sys
from importlib.metadata import distributions, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

import rayface

ROOT = Path(__file__).parents[1]


def test_every_public_name_resolves_and_is_listed() -> None:
    assert {name for name in rayface.__all__ if getattr(rayface, name, None) is None} == set()
    assert set(rayface.__all__) <= set(dir(rayface))


def test_import_loads_neither_torch_nor_ray_nor_the_config() -> None:
    script = (
        "import sys, rayface; print([name for name in ('torch', 'ray', 'pydantic', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_driver_of_a_training_imports_pytorch_only_while_ray_starts() -> None:
    modules = "rayface.cli.command_line, rayface.training.trainer"
    script = f"import sys, {modules}; print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_what_a_driver_imports_while_ray_starts_is_without_ray() -> None:
    """Another thread imports from Ray meanwhile."""
    script = "import sys, rayface.training.model_check, rayface.plan.preflight; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_files_and_functions_are_short():
    """Files up to 300 lines, functions below 50 without signature and docstring."""
    long = []
    for path in Path(rayface.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if text.count("\n") > 300:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body and node.end_lineno - body[0].lineno >= 50:
                    long.append(f"{path}: {node.name}")
    assert not long


def test_no_package_imports_one_of_a_higher_layer() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (order,) = re.findall(r"no package imports a higher one: (.*?)\.\n", text, re.DOTALL)
    layers = [re.findall(r"\w+", names) for names in order.split("→")]
    height = {name: number for number, names in enumerate(layers) for name in names}
    aside, higher = {"fork_server", "ray_internals"}, []  # of Ray, not of the layers
    for path in (ROOT / "rayface").rglob("*.py"):
        own = height.get(path.relative_to(ROOT / "rayface").parts[0].removesuffix(".py"), len(layers))
        for node in ast.walk(ast.parse(path.read_text())):
            package, *module = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and package == "rayface":
                used = module[:1] or [name.name for name in node.names]
                higher += [f"{path}: {name}" for name in used if height.get(name, 0) > own]
    assert higher == []
    assert height.keys() >= {path.parent.name for path in (ROOT / "rayface").glob("*/__init__.py")} - aside


def test_pinned_packages_run_on_every_python_that_rayface_does() -> None:
    oldest = metadata("rayface")["Requires-Python"].removeprefix(">=") + ".0"
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in pinned if "==" in line]
    assert len(names) > 100
    needs = {name: metadata(name).get("Requires-Python", "") for name in names if list(distributions(name=name))}
    assert [name for name, versions in needs.items() if oldest not in SpecifierSet(versions)] == []
