"""The machine that the kit runs on, as far as figures depend on it."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware and versions."""

    gpu: str
    """Name, memory, driver and largest clock; empty without a GPU."""
    clocks: str
    """Of the GPU when the kit began."""
    cpu: str
    cores: int
    """That this process may use."""
    python: str
    packages: str
    """Name and version of those that figures depend on."""


def describe() -> Machine:
    """Describe this machine without starting its GPU."""
    found = [f"{name} {text}" for name in ("torch", "triton", "numba", "numpy", "pyarrow") if (text := _version(name))]
    return Machine(
        gpu=_nvidia_smi("name,memory.total,driver_version,clocks.max.sm,power.limit"),
        clocks=clocks(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        packages=", ".join(found),
    )


def clocks() -> str:
    """Return the present clocks, power, temperature and load of the GPU; empty without one."""
    values = _nvidia_smi(_QUERY).split(", ")
    if len(values) != 5:
        return ""
    return "SM {}, memory {}, {}, {} C, load {}".format(*values)


def _nvidia_smi(query: str) -> str:
    """Return the first GPU's line, or nothing."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip().partition("\n")[0]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
