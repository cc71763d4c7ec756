"""Messages between the script that Ray starts and the fork server; without imports that would slow that start."""

import array
import contextlib
import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import NamedTuple

_STREAMS = 3  # stdin, stdout, stderr
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_SEND_SECONDS = 5  # for a whole request
_START_SECONDS = 20  # until the process is forked: the server may be in the middle of an import


class Request(NamedTuple):
    """What the forked process shall run, and what it takes over from the client, which Ray has started."""

    streams: list[int]
    """Descriptors of stdin, stdout and stderr."""
    program: str
    """A Python script."""
    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    open_files: tuple[int, int]
    """Soft and hard limit."""
    blocked_signals: list[int]
    oom_score: str


def send_request(connection: socket.socket, program: str, arguments: list[str]) -> None:
    """Have a process forked in place of this one.

    Raises:
        OSError: there is no such process, and there will be none.
    """
    request = [
        program,
        arguments,
        dict(os.environ),
        os.getcwd(),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        _OOM_SCORE.read_text(),
    ]
    data = json.dumps(request).encode()
    streams = array.array("i", range(_STREAMS))
    connection.settimeout(_START_SECONDS)
    connection.sendmsg([len(data).to_bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    connection.sendall(data)
    _read(connection, 1)


def receive_request(connection: socket.socket) -> Request:
    """Return what `send_request` has sent.

    Raises:
        OSError, ValueError, TypeError: it is not a request, or not a whole one.
    """
    connection.settimeout(_SEND_SECONDS)
    size, streams, _, _ = socket.recv_fds(connection, 8, _STREAMS)
    try:
        return Request(streams, *json.loads(_read(connection, int.from_bytes(size))))
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise


def send_ack(connection: socket.socket) -> None:
    """Tell the client, from the forked process, that it is there.

    Raises:
        OSError: the client has given up.
    """
    connection.sendall(b"1")


def send_exit_status(connection: socket.socket, status: int) -> None:
    """Tell the client how the forked process has ended."""
    connection.sendall(status.to_bytes(4))


def wait_exit_status(connection: socket.socket) -> int:
    """Return the exit status of the forked process when it has ended, as of `os.waitpid`.

    Raises:
        OSError: the fork server is gone; the process goes on.
    """
    connection.settimeout(None)
    return int.from_bytes(_read(connection, 4))


def set_oom_score(score: str) -> None:
    """Say how soon this process is killed where memory is short, if it may."""
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(score)


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side is gone")
        data += piece
    return data
