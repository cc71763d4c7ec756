"""The process that workers are forked from: imports modules, and does nothing else.

    python -m rayface.fork_server.server LISTENER MODULE ...

LISTENER is the descriptor of a listening socket; see rayface.fork_server.protocol. The process has one thread of
Python, so that it can be forked; a thread of Arrow's memory allocator starts again in the forked process. It ends when
its stdin does, and removes the folder of its socket then.
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
from collections.abc import Sequence
from pathlib import Path

from rayface.fork_server.protocol import Request, receive_request, send_ack, send_exit_status, set_oom_score

_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class ForkServer:
    """Forks a process for every connection, and tells the client when that one has ended.

    Args:
        listener: a listening socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._events.register(listener, selectors.EVENT_READ)
        self._events.register(sys.stdin, selectors.EVENT_READ)
        self._forked: dict[int, tuple[int, socket.socket]] = {}  # pidfd to process id and connection of the client

    def serve(self, *, wait: bool) -> Request | None:
        """Serve requests; return in a forked process its request, and in the server None.

        Args:
            wait: until stdin ends; else only the requests that are there.
        """
        while events := self._events.select(None if wait else 0):
            for key, _ in events:
                if key.fileobj is sys.stdin:
                    shutil.rmtree(Path(self._listener.getsockname()).parent, ignore_errors=True)
                    sys.exit()
                elif key.fileobj is self._listener:
                    if request := self._accept():
                        return request
                elif isinstance(key.fileobj, int):
                    self._reap(key.fileobj)
                elif self._forked.get(key.data, (0, None))[1] is key.fileobj:
                    self._kill_orphan(key.data)
        return None

    def _accept(self) -> Request | None:
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
        try:
            process = os.fork()
        except OSError:
            connection.close()
            process = -1
        if not process:
            self._leave(connection)
            return request
        for stream in request.streams:
            os.close(stream)
        if process > 0:
            pidfd = os.pidfd_open(process)
            self._forked[pidfd] = process, connection
            self._events.register(pidfd, selectors.EVENT_READ)
            self._events.register(connection, selectors.EVENT_READ, pidfd)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """Close in a forked process what is the server's, and go on only if the client still waits for it."""
        try:
            send_ack(connection)
        except OSError:
            os._exit(1)
        for pidfd, (_, other) in self._forked.items():
            os.close(pidfd)
            other.close()
        self._events.close()
        connection.close()
        self._listener.close()

    def _reap(self, pidfd: int) -> None:
        process, connection = self._forked.pop(pidfd)
        self._events.unregister(pidfd)
        if connection in self._events.get_map():
            self._events.unregister(connection)
        os.close(pidfd)
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(OSError), connection:
            send_exit_status(connection, status)

    def _kill_orphan(self, pidfd: int) -> None:
        """Kill the process of a client that is gone: Ray has ended it before it knew the worker."""
        process, connection = self._forked[pidfd]
        self._events.unregister(connection)
        os.kill(process, signal.SIGKILL)


def opened_a_gpu(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Return whether this process has a GPU's device open, as it has from its first call of CUDA on."""
    targets = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            targets.append(os.readlink(descriptor))
    return any(target.startswith(_GPUS) for target in targets)


def _apply(request: Request) -> None:
    """Give this forked process what its client has."""
    os.setsid()  # Ray kills what is left in the process group of a worker
    for descriptor, stream in enumerate(request.streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, request.open_files)
    set_oom_score(request.oom_score)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
    sys.argv = [request.program, *request.arguments]
    sys.path[0] = str(Path(request.program).parent)
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator is seeded by the fork
    if "torch" in sys.modules and (threads := request.environment.get("OMP_NUM_THREADS", "")).isdecimal():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))  # read when PyTorch is imported, so too late for it


def main(arguments: Sequence[str]) -> None:
    """Import the modules, and serve meanwhile and after it."""
    # Python 3.12 warns of threads that it did not start.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
    server = ForkServer(socket.socket(fileno=int(arguments[0])))
    request = None
    for module in arguments[1:]:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            importlib.import_module(module)
        sys.stdout.flush()  # what a module has printed: a forked process would print it again
        if request := server.serve(wait=False):
            break
    else:
        gc.freeze()  # keeps pages shared
        request = server.serve(wait=True)
    assert request is not None
    _apply(request)
    runpy.run_path(request.program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
