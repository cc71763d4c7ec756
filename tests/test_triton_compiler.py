"""What Triton needs is checked before a kernel is launched."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from rayface.triton_compiler import check_triton_compiler


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with clang only; the folder of Python's headers, with the one that is needed."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/clang" if name == "clang" else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    return tmp_path


def test_triton_with_a_compiler_and_headers_is_not_refused(machine: Path) -> None:
    check_triton_compiler("head.kernel 'fused'", "set head.kernel=chunked")


def test_triton_without_the_compiler_of_cc_raises_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "icx")
    with pytest.raises(ValueError, match=r"^a: 1: Triton needs a C .*, no icx was found: .*, or leave it out$"):
        check_triton_compiler("a: 1", "leave it out")


def test_triton_without_headers_of_python_raises_one_line(machine: Path) -> None:
    (machine / "Python.h").unlink()
    with pytest.raises(ValueError, match=rf"no {machine}/Python\.h was found: install them .*, or leave it out$"):
        check_triton_compiler("a: 1", "leave it out")
