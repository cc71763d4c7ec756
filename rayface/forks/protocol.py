"""What is said between a worker that starts and the fork server; without imports that would slow that start."""

import array
import json
import os
import socket
from dataclasses import dataclass

ADDRESS = "RAYFACE_FORK_SERVER"
"""Environment variable: the socket of the fork server."""
_STREAMS = 3  # stdin, stdout, stderr


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a forked process shall run, and with what."""

    streams: list[int]
    """Descriptors of its stdin, stdout and stderr."""
    program: str
    """A Python script."""
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    """Its working directory."""


def ask(connection: socket.socket, program: str, arguments: list[str]) -> None:
    """Have a process forked that runs a script with this one's environment, folder, stdin, stdout and stderr.

    Raises:
        OSError: the fork server is gone, and no process is forked.
    """
    request = json.dumps([program, arguments, dict(os.environ), os.getcwd()]).encode()
    streams = array.array("i", range(_STREAMS))
    connection.sendmsg([len(request).to_bytes(8)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    connection.sendall(request)
    _read(connection, 1)


def status_of_forked(connection: socket.socket) -> int:
    """Return the exit status of the process that was asked for when it has ended, as of `os.waitpid`.

    Raises:
        OSError: the fork server is gone; the process goes on.
    """
    return int.from_bytes(_read(connection, 4))


def take(connection: socket.socket) -> Request:
    """Return what `ask` has sent.

    Raises:
        OSError, ValueError: it has not sent all of it.
    """
    size, streams, _, _ = socket.recv_fds(connection, 8, _STREAMS)
    try:
        program, arguments, environment, folder = json.loads(_read(connection, int.from_bytes(size)))
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise
    return Request(streams=streams, program=program, arguments=arguments, environment=environment, folder=folder)


def forked(connection: socket.socket) -> None:
    """Tell the worker that asked that the process is there."""
    connection.sendall(b"1")


def answer(connection: socket.socket, status: int) -> None:
    """Tell the worker that asked with what status the forked process has ended."""
    connection.sendall(status.to_bytes(4))


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the other side is gone")
        data += piece
    return data
