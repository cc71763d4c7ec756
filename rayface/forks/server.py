"""The process that workers are forked from: imports modules, then does nothing else.

    python -m rayface.forks.server LISTENER MODULE ...

LISTENER is the descriptor of a listening socket; rayface.forks.protocol tells what is said on it. The process has one
thread of Python, so that it can be forked. It ends when its stdin does, and removes the socket's folder then.
"""

import contextlib
import gc
import importlib
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from pathlib import Path

from rayface.forks.protocol import Request, answer, forked, take

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class ForkServer:
    """Forks a process for every connection, and tells it when that one has ended.

    Args:
        listener: a listening socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._events.register(listener, selectors.EVENT_READ)
        self._events.register(sys.stdin, selectors.EVENT_READ)
        self._forked: dict[int, tuple[int, socket.socket]] = {}  # descriptor of a process to its id and who asked

    def serve(self, *, wait: bool) -> Request | None:
        """Serve what there is, or until stdin ends; return in a forked process what it shall do.

        Args:
            wait: until stdin ends, in place of what has been asked until now.
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
                    self._report(key.fileobj)
                elif key.data in self._forked:
                    self._give_up(key.data)
        return None

    def _accept(self) -> Request | None:
        if opened_a_gpu():  # which a forked process cannot use
            sys.exit()
        connection, _ = self._listener.accept()
        try:
            request = take(connection)
        except (OSError, ValueError):
            connection.close()
            return None
        if process := os.fork():
            for stream in request.streams:
                os.close(stream)
            ended = os.pidfd_open(process)
            with contextlib.suppress(OSError):
                forked(connection)
            self._forked[ended] = process, connection
            self._events.register(ended, selectors.EVENT_READ)
            self._events.register(connection, selectors.EVENT_READ, ended)
            return None
        for ended, (_, other) in self._forked.items():
            os.close(ended)
            other.close()
        self._events.close()
        connection.close()
        self._listener.close()
        return request

    def _report(self, ended: int) -> None:
        process, connection = self._forked.pop(ended)
        self._events.unregister(ended)
        if connection in self._events.get_map():
            self._events.unregister(connection)
        os.close(ended)
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(OSError), connection:
            answer(connection, status)

    def _give_up(self, ended: int) -> None:
        """Kill the process of one who has asked and is gone: Ray has ended it before the worker was known to it."""
        process, connection = self._forked[ended]
        self._events.unregister(connection)
        os.kill(process, signal.SIGKILL)


def opened_a_gpu(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Return whether this process has a device of a GPU open, as it has from the first call of CUDA on."""
    targets = []
    for descriptor in descriptors.iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            targets.append(os.readlink(descriptor))
    return any(target.startswith(_DEVICES) for target in targets)


def _become(request: Request) -> None:
    """Turn this forked process into what its asker would have become."""
    os.setsid()  # Ray kills what is left in the process group of a worker
    for place, stream in enumerate(request.streams):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.argv = [request.program, *request.arguments]
    sys.path[0] = str(Path(request.program).parent)
    paths = request.environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator is seeded by the fork


def main() -> None:
    """Import the modules, and serve meanwhile and after it."""
    server = ForkServer(socket.socket(fileno=int(sys.argv[1])))
    request = None
    for module in sys.argv[2:]:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            importlib.import_module(module)
        if request := server.serve(wait=False):
            break
    else:
        gc.freeze()  # keeps pages shared
        request = server.serve(wait=True)
    assert request is not None
    _become(request)
    runpy.run_path(request.program, run_name="__main__")


if __name__ == "__main__":
    main()
