"""The object store that answers late: ranges, heads and names that it does not hold."""

import os
from pathlib import Path

import numpy as np
import pytest

from rayface.bench.slow_store import _answer, slow_store
from rayface.storage import DataError, Source


@pytest.mark.parametrize(
    ("request_lines", "status", "body"),
    [
        ("GET /bench/0 HTTP/1.1", "200 OK", b"0123456789"),
        ("GET /bench/0?versionId=x HTTP/1.1|Range: bytes=2-4", "206 Partial Content", b"234"),
        ("GET /bench/0 HTTP/1.1|range: bytes=7-", "206 Partial Content", b"789"),
        ("GET /bench/0 HTTP/1.1|Range: bytes=8-99", "206 Partial Content", b"89"),
        ("HEAD /bench/0 HTTP/1.1", "200 OK", b""),
        ("GET /bench/1 HTTP/1.1", "404 Not Found", b""),
        ("GET /bench/name HTTP/1.1", "404 Not Found", b""),
    ],
)
def test_answer_to_a_request_has_its_status_and_range(
    tmp_path: Path, request_lines: str, status: str, body: bytes
) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        answer = _answer([file], request_lines.replace("|", "\r\n").encode() + b"\r\n\r\n")
    finally:
        os.close(file)
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert found == body


def test_answer_to_a_head_tells_the_size_that_a_get_would_have(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        answer = _answer([file], b"HEAD /bench/0 HTTP/1.1\r\n\r\n")
    finally:
        os.close(file)
    assert b"\r\nContent-Length: 10\r\n" in answer


def test_slow_store_of_a_file_serves_its_ranges_and_no_others(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / "a.tar").write_bytes(content)
    with slow_store([str(tmp_path / "a.tar")], 0.0) as (uri,):
        with Source(uri) as source:
            assert source.size == 5000
            assert source.read(100, 700) == content[100:800]
            assert source.read(4900, 700) == content[4900:]
        with pytest.raises(DataError, match="cannot be read"):
            Source(uri.replace("/0?", "/1?"))
