"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of real faces; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("RAYFACE_FACES", Path(__file__).parent.parent.parent / "shared" / "data" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"RAYFACE_FACES: no folder of real faces at {folder}")
    return folder
