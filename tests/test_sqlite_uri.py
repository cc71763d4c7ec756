"""URIs of SQLite files: what SQLAlchemy and MLflow make of them is the file that is meant."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from rayface.sqlite_uri import absolute_sqlite_uri, sqlite_path, sqlite_uri

FOLDERS = ["plain", "a b", "a%20b", "100%", "a?b=c", "a#b", "a&key=b", "a+b", "a:b@c", "[a],b", "'a\"", "é", "-a"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_sqlite_uri_of_a_folder_with_special_characters_opens_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (Path(folder, "m.db"), tmp_path / folder / "m.db"):
        uri = sqlite_uri(file)
        assert make_url(f"{uri}?timeout=5").database == str(file)
        assert sqlite_path(f"{uri}?timeout=5") == file
        assert absolute_sqlite_uri(f"{uri}?timeout=5") == f"{sqlite_uri(tmp_path / folder / 'm.db')}?timeout=5"
        # MLflow creates this folder.
        assert Path(uri.removeprefix("sqlite:///")).parent in (file.parent, Path())


@pytest.mark.parametrize("uri", ["sqlite:///:memory:", "sqlite:///file:m.db?uri=true", "postgresql://me@host/db"])
def test_sqlite_path_of_no_path_is_none(uri: str) -> None:
    assert sqlite_path(uri) is None
    assert absolute_sqlite_uri(uri) == uri
