"""The process that others are forked from: imports modules, and does nothing else.

    python server.py LISTENER MODULE,... TEMPLATE_MODULE,...

LISTENER is the descriptor of a listening socket; see rayface.fork_server.protocol. For workers of Ray a template is
forked for each environment that they have: it imports what must not be imported in another one, and is forked in turn
for each worker. Server and templates have one thread of Python, so that they can be forked; a thread of Arrow's memory
allocator starts again in the forked process. The server ends when its stdin does, and removes the folder of its socket
then; a template ends when the server and all its workers have.
"""

import contextlib
import gc
import importlib
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # this file's folder
    if find_spec("rayface") is None:  # not installed, but beside the driver's script
        sys.path.insert(0, str(Path(__file__).parents[2]))

from rayface.fork_server.protocol import (
    Request,
    pass_request,
    receive_passed,
    receive_request,
    send_ack,
    send_exit_status,
    set_oom_score,
)

_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
_MAX_TEMPLATES = 8  # of clients that are gone some stay, until others take their place
# The job of a worker, in its environment. One that starts without a job, as Ray's first ones do, gets it with its first
# task; so workers of all jobs can have one template.
_JOB, _NO_JOB = "RAY_JOB_ID", "ffffffff"


class Task(Protocol):
    """What a forked process does."""

    def run(self) -> None:
        """Do it; returns at the end of the process."""


class _Forking:
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
            process = self._fork(self._tell)
        except OSError:
            connection.close()
            _close(request.streams)
            return None
        if process is None:
            try:
                send_ack(connection)
            except OSError:  # the client no longer waits
                os._exit(1)
            for other in [connection, *own, *self._clients.values()]:
                other.close()
            return Client(request)
        _close(request.streams)
        self._clients[process] = connection
        self._on(connection, partial(self._kill_orphan, process))
        return None

    def _tell(self, process: int, status: int) -> None:
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
            _close(self._pidfds)
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


class ForkServer(_Forking):
    """Forks processes for clients without Ray, and templates, which it passes the others on to.

    Args:
        listener: a listening socket.
        modules: those that templates import.
    """

    def __init__(self, listener: socket.socket, modules: Sequence[str]) -> None:
        super().__init__()
        self._listener, self._modules = listener, modules
        self._templates: dict[object, socket.socket] = {}
        self._on(listener, self._accept)
        self._on(sys.stdin.fileno(), self._end)

    def _end(self) -> None:
        shutil.rmtree(Path(self._listener.getsockname()).parent, ignore_errors=True)
        sys.exit()

    def _accept(self) -> Task | None:
        if opened_a_gpu():  # a forked process could not use it
            sys.exit()
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many open files: the client starts without us
            return None
        try:
            request = receive_request(connection)
        except (OSError, ValueError, TypeError):
            connection.close()
            return None
        preload = request.environment.get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")
        if request.interpreter != sys.executable or not preload:  # a runtime environment of its own
            connection.close()
            _close(request.streams)
            return None
        if not request.with_ray:
            return self._fork_client(connection, request, *self._own())
        try:
            return self._pass_on(connection, request)
        except OSError:  # no more processes or descriptors; the template is gone
            return None
        finally:
            connection.close()
            _close(request.streams)

    def _own(self) -> list[socket.socket]:
        return [self._listener, *self._templates.values()]

    def _pass_on(self, connection: socket.socket, request: Request) -> Task | None:
        """Have a template fork; in a template that is new, return its task."""
        environment = {name: value for name, value in request.environment.items() if name != _JOB}
        key = (request.cwd, frozenset(environment.items()))
        if key not in self._templates:
            ours, channel = socket.socketpair()
            process = self._fork(lambda *_: self._drop(key, ours))
            if process is None:
                for other in [ours, *self._own(), *self._clients.values()]:
                    other.close()
                return Template(channel, request, self._modules)
            channel.close()
            self._templates[key] = ours
            if len(self._templates) > _MAX_TEMPLATES:
                oldest = next(iter(self._templates))
                self._drop(oldest, self._templates[oldest])
        try:
            pass_request(self._templates[key], connection, request)
        except OSError:
            self._drop(key, self._templates[key])
            raise
        return None

    def _drop(self, key: object, channel: socket.socket) -> None:
        """Let a template end with its workers."""
        if self._templates.get(key) is channel:
            del self._templates[key]
        channel.close()


class Template(_Forking):
    """Forks workers of Ray in one environment.

    Args:
        channel: clients come from it; see `pass_request`.
        example: has the environment and the folder of all of them.
    """

    def __init__(self, channel: socket.socket, example: Request, modules: Sequence[str]) -> None:
        super().__init__()
        self._channel: socket.socket | None = channel
        self._example, self._modules = example, modules
        self._on(channel, self._accept)

    def run(self) -> None:
        """Import modules in the environment of the clients, then serve them."""
        _enter(self._example)
        os.environ[_JOB] = _NO_JOB
        import_all(self._modules)
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

    def _tell(self, process: int, status: int) -> None:
        super()._tell(process, status)
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._channel is None and not self._clients:
            sys.exit()


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
        _enter(request)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, request.open_files)
        set_oom_score(request.oom_score)
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


def import_all(modules: Iterable[str]) -> None:
    """Import modules, as far as they can be."""
    for module in modules:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            importlib.import_module(module)
    sys.stdout.flush()  # what a module has printed: a forked process would print it again
    gc.freeze()  # keeps pages shared


def _enter(request: Request) -> None:
    """Give this process the environment and the folder of a client."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    if "torch" in sys.modules and (threads := request.environment.get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))  # read when PyTorch is imported, so too late for it


def _leave_streams() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def main(listener: str, modules: str, template_modules: str) -> None:
    """Import modules, and serve."""
    # Python 3.12 warns of threads that it did not start.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    import_all(filter(None, modules.split(",")))
    server = ForkServer(socket.socket(fileno=int(listener)), [*filter(None, template_modules.split(","))])
    server.serve().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
