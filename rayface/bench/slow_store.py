"""Loopback object store with latency: serves local files by ranged reads like S3, to measure readers."""

import asyncio
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from multiprocessing.connection import Connection

_BUCKET = "bench"


@contextmanager
def slow_store(paths: Sequence[str], latency: float) -> Iterator[list[str]]:
    """Serve files from a separate process inside the context; yield their s3:// URIs.

    Args:
        latency: seconds before every response; concurrent requests wait in parallel.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(list(paths), latency, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that fails ends the wait for its port
    try:
        port = ours.recv()
        query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        yield [f"s3://bench:bench@{_BUCKET}/{number}?{query}" for number in range(len(paths))]
    finally:
        process.terminate()
        process.join()


def _serve(paths: list[str], latency: float, ready: Connection) -> None:
    asyncio.run(_listen(paths, latency, ready))


async def _listen(paths: list[str], latency: float, ready: Connection) -> None:
    files = [os.open(path, os.O_RDONLY) for path in paths]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(latency)
                writer.write(_answer(files, request))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _answer(files: Sequence[int], request: bytes) -> bytes:
    """Return the response to a HEAD or GET request, with or without a range, of /BUCKET/NUMBER."""
    first, *lines = request.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    key = target.partition("?")[0].strip("/").removeprefix(_BUCKET).strip("/")
    if not key.isdigit() or int(key) >= len(files):
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    size = os.fstat(files[int(key)]).st_size
    start, _, stop = headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
    low, high = int(start), min(int(stop) if stop else size - 1, size - 1)
    status = "206 Partial Content" if "range" in headers else "200 OK"
    answer = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {high - low + 1}",
        f"Content-Range: bytes {low}-{high}/{size}",
        f"Last-Modified: {formatdate(0, usegmt=True)}",
        'ETag: "0"',
        "Accept-Ranges: bytes",
        "Content-Type: application/octet-stream",
    ]
    body = b"" if method == "HEAD" else os.pread(files[int(key)], high - low + 1, low)
    return "\r\n".join([*answer, "", ""]).encode() + body
