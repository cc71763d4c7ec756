"""Open files of object stores are kept up to a number."""

import pytest

from rayface.data.shards import open_files
from rayface.data.shards.open_files import OpenFiles


def test_open_files_of_a_store_are_closed_when_unused_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    closed: list[str] = []

    class File:
        def __init__(self, path: str) -> None:
            opened.append(path[-1])
            self.close = lambda: closed.append(path[-1])

    monkeypatch.setattr(open_files, "Source", File)
    monkeypatch.setattr(open_files, "_KEPT_OPEN", 2)
    files = OpenFiles()

    def use(*names: str) -> None:
        for name in names:
            with files.opened(f"s3://{name}"):
                pass

    use("a", "b", "a", "c")
    assert (opened, closed) == (["a", "b", "c"], ["b"])
    with files.opened("s3://a"):
        use("d", "e")
    assert (opened[3:], closed[1:]) == (["d", "e"], ["c", "d"])  # a was in use
    files.close()
    assert sorted(closed) == sorted(opened)
