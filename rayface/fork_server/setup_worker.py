"""The script that Ray runs for a worker with a runtime environment, in place of its own setup_worker.py.

Ray's applies the environment as its agent has described it, in JSON, for which it imports Ray: .5 s of CPU time of each
worker. This one does so for variables and a working directory, and runs Ray's own for anything else. It imports no
module of rayface: it becomes another Python at once.
"""

import json
import os
import re
import runpy
import shlex
import sys

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main() -> None:
    """Become the worker that the arguments describe, in its environment."""
    contexts = [each.removeprefix(_CONTEXT) for each in sys.argv if each.startswith(_CONTEXT)]
    languages = [each.removeprefix(_LANGUAGE) for each in sys.argv if each.startswith(_LANGUAGE)]
    if len(contexts) != 1 or languages != ["PYTHON"] or not enter(json.loads(contexts[0])):
        if not sys.flags.safe_path:
            del sys.path[0]  # this file's folder
        runpy.run_module("ray._private.workers.setup_worker", run_name="__main__")
        return
    # Not in this process: everybody on the machine can read its arguments, and they name the variables.
    arguments = [each for each in sys.argv[1:] if not each.startswith((_CONTEXT, _LANGUAGE))]
    os.execv(sys.executable, [sys.executable, *arguments])


def enter(context: dict[str, object]) -> bool:
    """Give this process an environment; return False, with nothing changed, if it has more than this can do.

    Args:
        context: the fields of Ray's RuntimeEnvContext.
    """
    match context.pop("command_prefix", []):
        case []:
            folder = None
        case ["cd", str(quoted), "&&"]:
            (folder,) = shlex.split(quoted)
        case _:
            return False
    variables = context.pop("env_vars", {})
    if context.pop("py_executable", sys.executable) != sys.executable or any(context.values()):
        return False
    assert isinstance(variables, dict)
    if "BASH_ENV" in {*os.environ, *variables}:  # Ray starts the worker by bash, which runs that script first
        return False
    for name, value in variables.items():
        # As Ray does it: ${NAME} of a variable that is not set stands for nothing.
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    if folder is not None:
        os.environ.update(PWD=folder, OLDPWD=os.getcwd())
        os.chdir(folder)
    return True


if __name__ == "__main__":
    main()
