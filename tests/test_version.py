"""The commit of rayface: of its own clone or installation, never of the working directory."""

import importlib.metadata
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayface import version


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(version.COMMIT_VARIABLE, raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, origin: object) -> str:
    """The commit of a package that is in no clone and whose installation tells `origin`."""
    found = SimpleNamespace(read_text=lambda name: json.dumps(origin))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    monkeypatch.setattr(version, "__file__", "/nowhere/site-packages/rayface/version.py")
    return version.commit.__wrapped__()


def test_commit_in_another_working_directory_is_that_of_the_clone(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "__file__", str(clone / "rayface" / "version.py"))
    head = git(clone, "rev-parse", "HEAD").strip()
    monkeypatch.chdir("/")
    assert version.commit.__wrapped__() == head
    (clone / "file").write_text("b")
    assert version.commit.__wrapped__() == f"{head}-dirty"


def test_commit_of_an_installation_is_what_pip_recorded(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)  # another project's repository
    assert installed(monkeypatch, {"url": "https://x", "vcs_info": {"commit_id": "abc"}}) == "abc"
    head = git(clone, "rev-parse", "HEAD").strip()
    assert installed(monkeypatch, {"url": f"file://{clone}", "dir_info": {}}) == head
    assert installed(monkeypatch, {}) == "unknown"


def test_commit_of_a_submitted_job_is_that_of_the_submitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(version.COMMIT_VARIABLE, "c0ffee")
    assert installed(monkeypatch, {}) == "c0ffee"
