"""Workers start in their runtime environment as by Ray's own script, and without an import of Ray where they can."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.workers import setup_worker as script_of_ray

from rayface.fork_server import ADDRESS
from rayface.fork_server.launch import WORKER_SCRIPTS, ForkServerProcess

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a fork server on Linux alone")

TELL = """
import json, os, sys
names = ("A", "B", "C", "VIA", "PYTHONPATH", "PWD")
print(json.dumps([{name: os.environ.get(name) for name in names}, os.getcwd(), sys.argv]))
"""


@pytest.fixture
def other_ray(tmp_path: Path) -> Path:
    """A folder with another Ray, whose default_worker.py tells what it is started with."""
    scripts = tmp_path / "other" / "ray" / "_private" / "workers"
    scripts.mkdir(parents=True)
    (tmp_path / "other" / "ray" / "__init__.py").touch()
    (scripts / "default_worker.py").write_text(TELL)
    return tmp_path / "other"


def started(script: str, context: RuntimeEnvContext, **variables: str) -> tuple[Any, str]:
    """Return what the worker tells, and the modules that the first process imports until then."""
    arguments = [f"--serialized-runtime-env-context={context.serialize()}", "--language=PYTHON"]
    command = [sys.executable, "-X", "importtime", script, WORKER_SCRIPTS["worker_path"], "--port=1", "a b", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BASH_ENV")}
    environment |= {"A": "before", "HOME": "/home/of", "PWD": os.getcwd(), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    ("context", "imports_ray"),
    [
        ({}, False),
        ({"env_vars": {"A": "1", "B": "${HOME}/x:$A:${NOT_SET}:$NOT_SET", "C": "a b"}}, False),
        ({"command_prefix": ["cd", "FOLDER", "&&"]}, False),
        ({"command_prefix": ["export", "C=3", "&&"]}, True),
        ({"env_vars": {"BASH_ENV": "/dev/null"}}, True),
        ({"py_executable": f"env VIA=1 {sys.executable}"}, True),
    ],
)
def test_worker_starts_in_its_runtime_environment_as_by_ray(
    tmp_path: Path, other_ray: Path, context: dict[str, Any], imports_ray: bool
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    variables = context.get("env_vars", {}) | {"PYTHONPATH": str(other_ray)}
    prefix = [shlex.quote(str(folder)) if part == "FOLDER" else part for part in context.get("command_prefix", [])]
    described = RuntimeEnvContext(prefix, variables, context.get("py_executable"))
    wanted, _ = started(str(script_of_ray.__file__), described)
    told, modules = started(WORKER_SCRIPTS["setup_worker_path"], described)
    assert told == wanted
    assert told[2][0].startswith(str(other_ray))
    assert ("ray._raylet" in modules) is imports_ray
    if prefix[:1] == ["cd"]:
        assert told[1] == str(folder)


@pytest.mark.parametrize("where", ["environment", "process"])
def test_worker_starts_with_one_python_unless_its_environment_has_variables_for_python(
    other_ray: Path, where: str
) -> None:
    path = {"PYTHONPATH": str(other_ray)}
    context = RuntimeEnvContext(env_vars={"A": "1", **(path if where == "environment" else {})})
    told, modules = started(WORKER_SCRIPTS["setup_worker_path"], context, **(path if where == "process" else {}))
    assert told[0]["A"] == "1"
    assert told[2][0].startswith(str(other_ray))
    assert ("rayface.fork_server.protocol" in modules) is (where == "process")
    assert "pathlib" not in modules


def test_worker_of_another_script_or_language_runs_as_by_ray(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys; print(sys.argv[1:])")
    for language, script, printed in (("PYTHON", tmp_path / "own.py", "['a b']"), ("CPP", "printf", "a b")):
        arguments = [str(script), "a b", "--serialized-runtime-env-context={}", f"--language={language}"]
        command = [sys.executable, WORKER_SCRIPTS["setup_worker_path"], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        assert done.stdout.strip() == printed


def test_worker_without_an_environment_is_left_to_ray() -> None:
    command = [sys.executable, WORKER_SCRIPTS["setup_worker_path"], WORKER_SCRIPTS["worker_path"], "--language=PYTHON"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "default_worker.py" in done.stderr  # Ray's own, which lacks its arguments


@pytest.mark.parametrize("where", ["environment", "process"])
def test_forked_worker_has_its_environment_and_nobody_can_read_it(tmp_path: Path, other_ray: Path, where: str) -> None:
    script = other_ray / "ray" / "_private" / "workers" / "default_worker.py"
    script.write_text("import json, os; print(json.dumps([os.environ['TOKEN'], os.getcwd()]), flush=True); input()")
    path = {"PYTHONPATH": str(other_ray)}
    variables = {"TOKEN": "s3cret", **(path if where == "environment" else {})}
    context = RuntimeEnvContext(["cd", str(tmp_path), "&&"], variables)
    arguments = [f"--serialized-runtime-env-context={context.serialize()}", "--language=PYTHON"]
    server = ForkServerProcess(["numpy"])
    try:
        with subprocess.Popen(
            [sys.executable, WORKER_SCRIPTS["setup_worker_path"], WORKER_SCRIPTS["worker_path"], *arguments],
            env={**os.environ, ADDRESS: server.address, **(path if where == "process" else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            assert client.stdout is not None
            assert json.loads(client.stdout.readline()) == ["s3cret", str(tmp_path)]
            waiting = Path(f"/proc/{client.pid}/cmdline").read_text()
            assert waiting.rstrip("\0").split("\0") == [sys.executable, WORKER_SCRIPTS["worker_path"]]
            assert "s3cret" not in waiting
            client.communicate("\n", timeout=60)
        assert client.returncode == 0
    finally:
        server.close()


def test_process_whose_arguments_are_too_short_to_show_others_says_so() -> None:
    code = f"import runpy; print(runpy.run_path({WORKER_SCRIPTS['setup_worker_path']!r})['show'](['x' * 9000]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "False\n"


def test_worker_whose_folder_is_gone_ends_with_an_error(tmp_path: Path, other_ray: Path) -> None:
    context = RuntimeEnvContext(["cd", str(tmp_path / "gone"), "&&"], {"PYTHONPATH": str(other_ray)})
    with pytest.raises(AssertionError, match="No such file or directory"):
        started(WORKER_SCRIPTS["setup_worker_path"], context)
