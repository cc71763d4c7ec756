"""Fixtures that every folder of tests shares."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of real faces; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("RAYFACE_FACES", Path(__file__).parent.parent.parent / "shared" / "data" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"RAYFACE_FACES: no folder of real faces at {folder}")
    return folder


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page as a browser has it after its scripts ran."""

    dom: str
    console: list[str]  # what its scripts wrote there, thrown errors among it


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Page]:
    """Opens a file in a headless Chromium; tests that need it are skipped where none is installed."""
    names = (os.environ.get("RAYFACE_BROWSER"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("RAYFACE_BROWSER: no Chromium or Chrome on PATH")
    profile = tmp_path_factory.mktemp("browser")

    def show(path: Path) -> Page:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        logs = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]
        command = [found, *flags, *logs, path.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return Page(dom=done.stdout, console=re.findall(r"CONSOLE.*?\] (.*)", done.stderr))

    return show
