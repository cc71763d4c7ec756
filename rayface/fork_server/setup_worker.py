"""The script that Ray runs for a worker with a runtime environment, in place of its own setup_worker.py.

Ray's applies the environment as its agent has described it, in JSON, for which it imports Ray: .5 s of CPU time of each
worker. This one does so for variables and a working directory, and runs Ray's own for anything else.
"""

import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where rayface is not installed, but beside the driver's script

from rayface.fork_server import worker

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main() -> None:
    """Become the worker that the arguments describe, in its environment."""
    found = {name: [each for each in sys.argv if each.startswith(name)] for name in (_CONTEXT, _LANGUAGE)}
    options = [each for given in found.values() for each in given]
    script, *arguments = [each for each in sys.argv[1:] if each not in options] or [""]
    folder = None
    if options == [*found[_CONTEXT][:1], f"{_LANGUAGE}PYTHON"] and Path(script) == Path(worker.__file__):
        folder = enter(json.loads(options[0].removeprefix(_CONTEXT)))
    if folder is None:
        runpy.run_path(str(worker.script_of_ray("setup_worker.py")), run_name="__main__")
        return
    os.chdir(folder)
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [script, *arguments]
    worker.main()


def enter(context: dict[str, object]) -> str | None:
    """Set the variables of an environment, and return its working directory; None: it has more than these."""
    match context.pop("command_prefix", []):
        case []:
            folder = "."
        case ["cd", str(quoted), "&&"]:
            (folder,) = shlex.split(quoted)
        case _:
            return None
    variables = context.pop("env_vars", {})
    if context.pop("py_executable", sys.executable) != sys.executable or any(context.values()):
        return None
    assert isinstance(variables, dict)
    for name, value in variables.items():
        # As Ray does it: a name that is not set stands for nothing.
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    return folder


if __name__ == "__main__":
    main()
