"""What the JSON says of the machine."""

import subprocess

import pytest

from rayface.bench.gpu import machine


def test_describe_without_a_gpu_names_cores_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    found = machine.describe()
    assert (found.gpu, found.clocks) == ("", "")
    assert found.cores >= 1
    assert "torch " in found.packages
    assert "numba " in found.packages


def test_clocks_of_a_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "1980 MHz, 2619 MHz, 310.55 W, 44, 97 %\n"
    answer = subprocess.CompletedProcess([], 0, stdout=line, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert machine.clocks() == "SM 1980 MHz, memory 2619 MHz, 310.55 W, 44 C, load 97 %"
