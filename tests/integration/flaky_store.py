"""A proxy in front of an S3 server that fails requests.

Run as `python flaky_store.py UPSTREAM_PORT EVERY KIND...`: every EVERY-th request fails, by each kind in turn: 503,
"cut" in the middle of the answer's body or, without one, its header, a "slow" answer, or one that is "lost" after the
request was done. It is a process of its own, as Arrow holds the GIL while a stream is destroyed. GET /faults returns
the number of faults.
"""

import asyncio
import sys


class Proxy:
    """Forwards each request on a connection of its own."""

    def __init__(self, upstream: int, every: int, kinds: list[str]) -> None:
        self._upstream, self._every, self._kinds = upstream, every, kinds
        self._requests = self.faults = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._request(reader, writer)
            if request.startswith(b"GET /faults"):
                body = str(self.faults).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
                )
            else:
                await self._answer(request, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        self._requests += 1
        kind = ""
        if self._requests % self._every == 0:
            kind = self._kinds[self.faults % len(self._kinds)]
            self.faults += 1
        if kind == "503":
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        upstream.write(request)
        answer = await reader.read()
        upstream.close()
        if kind == "slow":
            await asyncio.sleep(0.5)
        head = answer.find(b"\r\n\r\n") + 4
        if kind == "lost":
            return
        start = head if len(answer) > head else 0
        writer.write(answer[: start + (len(answer) - start) // 2] if kind == "cut" else answer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Read a request; return it with a header that ends the connection after the answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        if b"expect: 100-continue" in lower:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        body = b""
        if b"transfer-encoding: chunked" in lower:
            while not body.endswith(b"\r\n0\r\n\r\n") and body != b"0\r\n\r\n":
                body += await reader.readuntil(b"\r\n")
        elif b"content-length:" in lower:
            body = await reader.readexactly(int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        lines = [
            line
            for line in head.rstrip(b"\r\n").split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"expect:"))
        ]
        return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body


async def main(upstream: int, every: int, kinds: list[str]) -> None:
    proxy = Proxy(upstream, every, kinds)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 26)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
