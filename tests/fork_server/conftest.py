"""These tests start servers of their own."""

import pytest

from rayface.fork_server import ADDRESS


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server of other tests is used."""
    monkeypatch.delenv(ADDRESS, raising=False)
