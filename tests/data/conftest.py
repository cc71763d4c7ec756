"""Fixtures of tests of datasets."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep scans of bare directories out of the user's cache; returns the cache of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYFACE_CACHE", str(folder))
    return folder
