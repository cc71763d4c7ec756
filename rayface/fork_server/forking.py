"""What forks: a process that waits for events, and the one that takes the place of a client."""

import contextlib
import importlib.machinery
import os
import re
import resource
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from rayface.fork_server.protocol import ENDING_SIGNALS, Request, send_ack, send_exit_status, set_oom_score

# Variables that libraries and Python read once. OMP_NUM_THREADS is set in the forked process.
_READ_BY_IMPORTS = re.compile("TORCH|PYTORCH|NUMBA_|LD_|PYTHON(?!PATH$|BREAKPOINT$|UNBUFFERED$)")
_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class Task(Protocol):
    """What a forked process does."""

    def run(self) -> None:
        """Do it; returns at the end of the process."""


class Forking:
    """A process that forks others for clients, and tells each client when its process has ended."""

    def __init__(self) -> None:
        self._events = selectors.DefaultSelector()
        self._clients: dict[int, socket.socket] = {}  # by the id of the forked process
        self._pidfds: set[int] = set()

    def serve(self) -> Task:
        """Wait for events forever; return in a forked process what that one shall do."""
        while True:
            for key, _ in self._events.select():
                if self._events.get_map().get(key.fd) is key and (task := key.data()):  # one may have ended another
                    return task

    def _on(self, source: int | socket.socket, act: Callable[[], Task | None]) -> None:
        self._events.register(source, selectors.EVENT_READ, act)

    def _forget(self, source: int | socket.socket) -> None:
        if source in self._events.get_map():
            self._events.unregister(source)

    def _fork_client(self, connection: socket.socket, request: Request, *own: socket.socket) -> "Client | None":
        """Fork a process that takes the place of a client; in that one return its task.

        Args:
            own: what it shall not keep open.
        """
        try:
            process = self._fork(self._report_exit)
        except OSError:
            connection.close()
            close_all(request.streams)
            return None
        if process is None:
            try:
                send_ack(connection)
            except OSError:  # the client no longer waits
                os._exit(1)
            for other in [connection, *own, *self._clients.values()]:
                other.close()
            return Client(request)
        close_all(request.streams)
        self._clients[process] = connection
        self._on(connection, partial(self._kill_orphan, process))
        return None

    def _report_exit(self, process: int, status: int) -> None:
        connection = self._clients.pop(process)
        self._forget(connection)
        with contextlib.suppress(OSError), connection:
            send_exit_status(connection, status)

    def _kill_orphan(self, process: int) -> None:
        """Kill the process of a client that is gone: Ray has ended it before it knew the worker."""
        self._forget(self._clients[process])
        os.kill(process, signal.SIGKILL)

    def _fork(self, reap: Callable[[int, int], None]) -> int | None:
        """Fork, and have `reap` called with the process id and its exit status; None in the forked process."""
        process = os.fork()
        if not process:
            close_all(self._pidfds)
            self._events.close()
            return None
        try:
            pidfd = os.pidfd_open(process)
        except OSError:  # nobody would know when it ends
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise
        self._pidfds.add(pidfd)

        def ended() -> None:
            self._forget(pidfd)
            self._pidfds.remove(pidfd)
            os.close(pidfd)
            reap(process, os.waitpid(process, 0)[1])

        self._on(pidfd, ended)
        return process


class Client:
    """A process that takes the place of its client."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def run(self) -> None:
        """Run the client's script."""
        request = self._request
        os.setsid()  # Ray kills what is left in the process group of a worker
        for descriptor, stream in enumerate(request.streams):
            os.dup2(stream, descriptor)
            os.close(stream)
        enter(request)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, request.open_files)
        os.umask(request.umask)
        set_oom_score(request.oom_score)
        for each in ENDING_SIGNALS:
            default = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            signal.signal(each, signal.SIG_IGN if each in request.ignored_signals else default)
        signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
        sys.argv = [request.program, *request.arguments]
        sys.path.insert(0, str(Path(request.program).parent))
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # Python's own generator is seeded by the fork
        runpy.run_path(request.program, run_name="__main__")


def opened_a_gpu(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Return whether this process has a GPU's device open, as it has from its first call of CUDA on."""
    targets = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            targets.append(os.readlink(descriptor))
    return any(target.startswith(_GPUS) for target in targets)


def has_our_imports(environment: Mapping[str, str]) -> bool:
    """Return whether a process with this environment would import what this one has imported, but for rayface."""
    theirs, now = _read_by_imports(environment), _read_by_imports(os.environ)
    # Imports change the environment: cv2's sets LD_LIBRARY_PATH, here and in a driver, before it starts Ray or after.
    if any(theirs.get(name) not in (_STARTED_WITH.get(name), now.get(name)) for name in {*theirs, *_STARTED_WITH}):
        return False
    imported = {name.partition(".")[0] for name in sys.modules} - {"rayface", "__main__"}
    others = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    found = (each.partition(".")[0] for path in others if os.path.isdir(path) for each in os.listdir(path))
    return imported.isdisjoint(found)


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _READ_BY_IMPORTS.match(name)}


_STARTED_WITH = _read_by_imports(os.environ)


def enter(request: Request) -> None:
    """Give this process the environment and the folder of a client."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    _leave_other_rayface()
    if "torch" in sys.modules and (threads := request.environment.get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))  # read when PyTorch is imported, so too late for it


def _leave_other_rayface() -> None:
    """Forget the modules of rayface that the server was started with, if the environment has another rayface."""
    ours, found = sys.modules.get("rayface"), importlib.machinery.PathFinder.find_spec("rayface")
    if ours is None or found is None or os.path.realpath(found.origin or "") == os.path.realpath(ours.__file__ or ""):
        return
    leave_rayface()


def use_rayface_of(file: str) -> None:
    """Have this process import the rayface that a file of it is of, which is a script of this package."""
    package = Path(file).resolve().parents[1]
    found = importlib.machinery.PathFinder.find_spec("rayface")
    if found is None or Path(found.origin or "").resolve().parent != package:
        sys.path.insert(0, str(package.parent))
    _leave_other_rayface()


def leave_rayface() -> None:
    """Forget the modules of rayface that were imported."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "rayface"]:
        del sys.modules[name]


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)
