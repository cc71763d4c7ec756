"""Servers of object stores that the user has named, now or in an earlier command."""

from pathlib import Path

import pytest

from rayface.storage import DataError, record_servers, require_known_server, require_known_servers, servers


@pytest.fixture(autouse=True)
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(servers, "_known", set())
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "value",
    [
        "s3://b/x?endpoint_override=mine:9",
        "[a,s3://b/x?endpoint_override=mine:9&scheme=https]",
        {"options": [{"file": "gs://b/x?endpoint_override=https://me:secret@mine:9/"}], "size": 3},
    ],
)
def test_record_servers_of_nested_values_makes_them_known_to_later_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    with pytest.raises(DataError, match=r"^data\.train: .*mine:9.* if you trust it, give data\.train again"):
        require_known_servers({"data.train": value}, "run")
    record_servers(value)
    monkeypatch.setattr(servers, "_known", set())
    require_known_servers({"data.train": value}, "run")
    assert "secret" not in "".join(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(DataError, match="http://mine:9"):  # without TLS
        require_known_server("s3://b/x?endpoint_override=mine:9&scheme=http", "data.train")


@pytest.mark.parametrize("host", ["..", "a." * 200])
def test_require_known_server_of_a_name_that_is_no_file_name_refuses_it(host: str) -> None:
    record_servers("s3://b/x?endpoint_override=mine:9")
    with pytest.raises(DataError, match="must be a server that you name"):
        require_known_server(f"abfs://c@{host}/x", "data.train")


def test_record_servers_without_a_state_folder_makes_them_known_to_this_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    record_servers("s3://b/x?endpoint_override=mine:9")
    require_known_server("s3://b/y?endpoint_override=mine:9", "data.train")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
