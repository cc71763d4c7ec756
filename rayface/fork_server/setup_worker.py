"""The script that Ray runs for a worker with a runtime environment, in place of its own setup_worker.py.

Ray's applies the environment as its agent has described it, in JSON, for which it imports Ray: .5 s of CPU time of each
worker. This one does so for variables and a working directory, and runs Ray's own for anything else. It imports no
module of rayface, and goes on as worker.py, or becomes another Python: for another script, where the environment has
variables for Python, and where its arguments would stay readable.
"""

import json
import os
import re
import runpy
import shlex
import sys

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_WORKER = os.path.join(os.path.dirname(__file__), "worker.py")


def main() -> None:
    """Become the worker that the arguments describe, in its environment."""
    contexts = [json.loads(each.removeprefix(_CONTEXT)) for each in sys.argv if each.startswith(_CONTEXT)]
    languages = [each.removeprefix(_LANGUAGE) for each in sys.argv if each.startswith(_LANGUAGE)]
    variables = {name for context in contexts for name in context.get("env_vars", {})}
    if len(contexts) != 1 or languages != ["PYTHON"] or not enter(contexts[0]):
        if not sys.flags.safe_path:
            del sys.path[0]  # this file's folder
        runpy.run_module("ray._private.workers.setup_worker", run_name="__main__")
        return
    sys.argv = [each for each in sys.argv[1:] if not each.startswith((_CONTEXT, _LANGUAGE))]
    command = [sys.executable, *sys.argv]
    # This Python has read its own variables. And everybody on the machine can read the arguments of a process, which
    # name the variables.
    if sys.argv[0] != _WORKER or any(name.startswith("PYTHON") for name in variables) or not show(command):
        os.execv(sys.executable, command)
    runpy.run_path(_WORKER, run_name="__main__")


def show(command: list[str]) -> bool:
    """Have the operating system show other arguments of this process; return whether it does."""
    shown = b"".join(os.fsencode(each) + b"\0" for each in command)
    try:
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # arg_start, arg_end of proc(5)
        if len(shown) > end - start:
            return False
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(shown.ljust(end - start, b"\0"))
        with open("/proc/self/cmdline", "rb") as file:
            return file.read().rstrip(b"\0") == shown.rstrip(b"\0")
    except (OSError, ValueError):  # a kernel that does not allow it, or has other fields
        return False


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
