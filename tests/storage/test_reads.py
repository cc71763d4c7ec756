"""Random access to a file: reopened after a stale handle, read in windows, whole or not at all."""

import errno
from pathlib import Path

import pytest

from rayface.data.dataset import Dataset
from rayface.storage import Source, read_bytes
from tests.storage.failing_os import fail


def test_source_with_a_stale_handle_opens_the_file_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with Source(dataset.shards[0].path) as source:
        head = source.read(0, 100)
        fail(monkeypatch, "pread", errno.ESTALE, times=1)
        opened = fail(monkeypatch, "open", errno.EIO, times=0)
        monkeypatch.setattr(opened, "times", 1)  # and the server is not back at once
        assert source.read(0, 100) == head
        assert opened.failed == 1


def test_read_bytes_of_an_empty_file_returns_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert read_bytes(str(tmp_path / "empty")) == b""
