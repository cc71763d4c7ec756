"""Messages between the script that Ray starts, the fork server and its templates.

Without imports that take long, pathlib among them: a worker waits for the script.
"""

import array
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

_STREAMS = 3  # stdin, stdout, stderr
_OOM_SCORE = "/proc/self/oom_score_adj"
_SEND_SECONDS = 5  # for a part of a request
_MOST_BYTES = 16 * 2**20  # of a request; an environment has some KB
INTERPRETER = f"{sys.prefix} {sys.version}"
"""This process's Python, in a request."""
ENDING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
CONNECT_SECONDS = 5
"""Until the server has room for one more that waits; more than a thousand wait where it hangs."""
# Until the process is forked: a template may be in the middle of imports, from a slow disk or on a busy machine. Ray
# starts another process where a worker has not registered within 60 s; the rest is for one that imports by itself.
_START_SECONDS = 40


class Request(NamedTuple):
    """What the forked process shall run, and what it takes over from the client, which Ray has started."""

    streams: list[int]
    """Descriptors of stdin, stdout and stderr."""
    interpreter: str
    """Of Python: its version, and the folder of its packages."""
    modules: list[str]
    """Those that a template in its environment has imported; none: it needs no template."""
    program: str
    """A Python script."""
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    umask: int
    open_files: tuple[int, int]
    """Soft and hard limit."""
    blocked_signals: list[int]
    ignored_signals: list[int]
    """Of those that end a process."""
    oom_score: str


def send_request(
    connection: socket.socket,
    program: str,
    arguments: Sequence[str] = (),
    *,
    streams: Sequence[int] = (0, 1, 2),
    modules: Sequence[str] = (),
) -> int:
    """Have a process forked that runs a script, and return its id.

    Args:
        modules: imported once in this environment, by a template that such processes are forked from.

    Raises:
        OSError: there is no such process, and there will be none.
    """
    _require_own(connection)
    request = [
        INTERPRETER,
        list(modules),
        program,
        arguments,
        dict(os.environ),
        os.getcwd(),
        _umask(),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        [int(each) for each in ENDING_SIGNALS if signal.getsignal(each) is signal.SIG_IGN],
        _text(_OOM_SCORE),
    ]
    connection.settimeout(_START_SECONDS)
    _send(connection, streams, request)
    return int.from_bytes(_read(connection, 4))


def receive_request(connection: socket.socket) -> Request:
    """Return what `send_request` has sent.

    Raises:
        OSError, ValueError, TypeError: it is not a request, or not a whole one.
    """
    connection.settimeout(_SEND_SECONDS)
    streams, values = _receive(connection, _STREAMS)
    return Request(streams, *values)


def pass_request(channel: socket.socket, connection: socket.socket, request: Request) -> None:
    """Have another process on this machine do what a client has asked for; its descriptors may be closed then.

    Raises:
        OSError: that process is gone.
    """
    _, *values = request
    _send(channel, [connection.fileno(), *request.streams], values)


def receive_passed(channel: socket.socket) -> tuple[socket.socket, Request] | None:
    """Return what `pass_request` has sent, and the connection of the client; None if there will be nothing more."""
    if not channel.recv(1, socket.MSG_PEEK):
        return None
    (connection, *streams), values = _receive(channel, 1 + _STREAMS)
    return socket.socket(fileno=connection), Request(streams, *values)


def send_ack(connection: socket.socket) -> None:
    """Tell the client, from the forked process, that it is there.

    Raises:
        OSError: the client has given up.
    """
    connection.sendall(os.getpid().to_bytes(4))


def send_exit_status(connection: socket.socket, status: int) -> None:
    """Tell the client how the forked process has ended."""
    connection.sendall(status.to_bytes(4))


def wait_exit_status(connection: socket.socket, seconds: float | None = None) -> int:
    """Return the exit status of the forked process when it has ended, as of `os.waitpid`.

    Args:
        seconds: how long to wait; None: as long as it takes.

    Raises:
        OSError: the process that forked it is gone, and it goes on; or it has not ended in time.
    """
    connection.settimeout(seconds)
    return int.from_bytes(_read(connection, 4))


def end_as(status: int) -> NoReturn:
    """End this process as another one has, by the exit status of `os.waitpid`."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the other one's dump is the one that tells something
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
        sys.exit(128 + os.WTERMSIG(status))  # it has no effect on process 1 of a container
    sys.exit(os.WEXITSTATUS(status))


def _require_own(connection: socket.socket) -> None:
    """Refuse a server of another user: who makes a socket where one was would get this user's environment."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.geteuid():
        raise PermissionError("another user's fork server")


def _umask() -> int:
    """Return the umask of this process without changing it; OSError where the kernel does not say."""
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise OSError("/proc/self/status: no umask")


def set_oom_score(score: str) -> None:
    """Say how soon this process is killed where memory is short, if it may."""
    with contextlib.suppress(OSError), open(_OOM_SCORE, "w") as file:
        file.write(score)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _send(connection: socket.socket, descriptors: Iterable[int], values: Sequence[object]) -> None:
    data = json.dumps(values).encode()
    rights = array.array("i", descriptors)
    connection.sendmsg([len(data).to_bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    connection.sendall(data)


def _receive(connection: socket.socket, count: int) -> tuple[list[int], Sequence[Any]]:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, count)
    try:
        size = int.from_bytes(header)
        if size > _MOST_BYTES:
            raise ValueError(f"{size:,} bytes")
        values = json.loads(_read(connection, size))
        if len(descriptors) != count or len(values) != len(Request._fields) - 1:
            raise ValueError(f"{len(descriptors)} descriptors, {len(values)} values")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors, values


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side is gone")
        data += piece
    return data
