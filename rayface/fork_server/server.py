"""The process that others are forked from: imports modules, and does nothing else.

    python server.py LISTENER MODULE,...

LISTENER is the descriptor of a listening socket; see rayface.fork_server.protocol. For clients with Ray a template is
forked for each environment that they have: it imports what must not be imported in another one, and is forked in turn
for each client. Server and templates have one thread of Python, so that they can be forked; a thread of Arrow's memory
allocator starts again in the forked process. The server ends when its stdin does, or the process whose id it has read
there, and removes the folder of its socket then; a template ends when the server and all its workers have.
"""

import contextlib
import gc
import importlib
import os
import shutil
import socket
import sys
import warnings
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # this file's folder
    # The driver's, which may not be the installed one.
    _own, _found = Path(__file__).resolve().parents[1] / "__init__.py", find_spec("rayface")
    if _found is None or os.path.realpath(_found.origin or "") != str(_own):
        sys.path.insert(0, str(_own.parents[1]))

from rayface.collector import collect_less_often
from rayface.fork_server.forking import (
    Forking,
    Task,
    close_all,
    enter,
    has_our_imports,
    leave_rayface,
    opened_a_gpu,
)
from rayface.fork_server.protocol import INTERPRETER, Request, pass_request, receive_passed, receive_request

_MAX_TEMPLATES = 8  # of clients that are gone some stay, until others take their place
# The job of a worker, in its environment. One that starts without a job, as Ray's first ones do, gets it with its first
# task; so workers of all jobs can have one template.
_JOB, _NO_JOB = "RAY_JOB_ID", "ffffffff"
# What imports do not read: it may differ between the processes of one template.
_READ_LATER = {
    *(_JOB, "RAY_JOB_CONFIG_JSON_ENV_VAR"),  # the second one is of drivers of jobs
    *("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"),  # Ray Train's controller
    # Of the actor that runs a submitted job's driver: read when a task begins.
    *("RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"),
    "PL_DISABLE_FORK",  # Ray Tune's, of a trial and what it starts
    *("_", "OLDPWD", "SHLVL"),  # a shell's
}


class ForkServer(Forking):
    """Forks processes for clients without Ray, and templates, which it passes the others on to.

    Args:
        listener: a listening socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener
        self._templates: dict[object, socket.socket] = {}
        self._code: dict[object, object] = {}
        self._on(listener, self._accept)
        self._on(sys.stdin.fileno(), self._end_or_follow)

    def _end_or_follow(self) -> None:
        """End with the process that started this one, or with another one that it names."""
        self._forget(sys.stdin.fileno())
        try:
            leader = os.pidfd_open(int(os.read(sys.stdin.fileno(), 32)))
        except (OSError, ValueError):
            self._end()
        self._pidfds.add(leader)
        self._on(leader, self._end)
        _leave_streams()  # who reads the output of `ray start` waits for its end

    def _end(self) -> NoReturn:
        shutil.rmtree(Path(self._listener.getsockname()).parent, ignore_errors=True)
        sys.exit()

    def _accept(self) -> Task | None:
        if opened_a_gpu():  # a forked process could not use it
            self._end()
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many open files: the client starts without us
            return None
        try:
            request = receive_request(connection)
        except (OSError, ValueError, TypeError):
            connection.close()
            return None
        if request.interpreter != INTERPRETER or not has_our_imports(request.environment):
            connection.close()
            close_all(request.streams)
            return None
        if not request.modules:
            return self._fork_client(connection, request, *self._own())
        try:
            return self._pass_on(connection, request)
        except OSError:  # no more processes or descriptors; the template is gone
            return None
        finally:
            connection.close()
            close_all(request.streams)

    def _own(self) -> list[socket.socket]:
        return [self._listener, *self._templates.values()]

    def _pass_on(self, connection: socket.socket, request: Request) -> Task | None:
        """Have a template fork; in a template that is new, return its task."""
        environment = {name: value for name, value in request.environment.items() if name not in _READ_LATER}
        key = (request.cwd, frozenset(environment.items()), *request.modules)
        code = None if _has_rayface() else _state_of_code(request.environment)
        if key in self._templates and self._code[key] != code:
            self._drop(key, self._templates[key])
        if key not in self._templates:
            ours, channel = socket.socketpair()
            process = self._fork(lambda *_: self._drop(key, ours))
            if process is None:
                for other in [ours, *self._own(), *self._clients.values()]:
                    other.close()
                return Template(channel, request)
            channel.close()
            self._templates[key], self._code[key] = ours, code
            if len(self._templates) > _MAX_TEMPLATES:
                oldest = next(iter(self._templates))
                self._drop(oldest, self._templates[oldest])
        self._templates[key] = self._templates.pop(key)  # the one used last is dropped last
        try:
            pass_request(self._templates[key], connection, request)
        except OSError:
            self._drop(key, self._templates[key])
            raise
        return None

    def _drop(self, key: object, channel: socket.socket) -> None:
        """Let a template end with its workers."""
        if self._templates.get(key) is channel:
            del self._templates[key], self._code[key]
        channel.close()


class Template(Forking):
    """Forks processes with the same imports in one environment.

    Args:
        channel: clients come from it; see `pass_request`.
        example: has the modules, the environment and the folder of all of them.
    """

    def __init__(self, channel: socket.socket, example: Request) -> None:
        super().__init__()
        self._channel: socket.socket | None = channel
        self._example = example
        self._on(channel, self._accept)

    def run(self) -> None:
        """Import modules in the environment of the clients, then serve them."""
        if not _has_rayface():  # what the server has of it may be older than what is imported now
            leave_rayface()
        enter(self._example)
        os.environ[_JOB] = _NO_JOB
        import_all(self._example.modules)
        _leave_streams()  # who reads the driver's output waits for its end; this process lives as long as a worker
        self.serve().run()

    def _accept(self) -> Task | None:
        assert self._channel is not None
        if opened_a_gpu():
            sys.exit()
        try:
            passed = receive_passed(self._channel)
        except (ValueError, TypeError):  # too many open files: its client starts without us
            return None
        except OSError:
            passed = None
        if passed is not None:
            return self._fork_client(*passed, self._channel)
        self._forget(self._channel)
        self._channel.close()
        self._channel = None
        self._end_if_alone()
        return None

    def _report_exit(self, process: int, status: int) -> None:
        super()._report_exit(process, status)
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._channel is None and not self._clients:
            sys.exit()


def _has_rayface() -> bool:
    """Return whether this process has imported more of rayface than its own modules."""
    return "rayface.training" in sys.modules


def _state_of_code(environment: Mapping[str, str]) -> object:
    """Return the names, times and sizes of rayface's files here and on a path of Python's."""
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    packages = {
        os.path.realpath(each) for each in (Path(__file__).parents[1], *(Path(path, "rayface") for path in paths))
    }
    found = (each for package in packages for each in os.walk(package))
    files = (os.path.join(folder, name) for folder, _, names in found for name in names if name.endswith(".py"))
    return frozenset((file, state.st_mtime_ns, state.st_size) for file in files for state in [os.stat(file)])


def import_all(modules: Iterable[str]) -> None:
    """Import modules, as far as they can be."""
    for module in modules:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            importlib.import_module(module)
    sys.stdout.flush()  # what a module has printed: a forked process would print it again
    gc.freeze()  # keeps pages shared


def _leave_streams() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def main(listener: str, modules: str) -> None:
    """Import modules, and serve."""
    # Python 3.12 warns of threads that it did not start.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    collect_less_often()
    import_all(filter(None, modules.split(",")))
    ForkServer(socket.socket(fileno=int(listener))).serve().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
