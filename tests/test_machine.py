"""What the process may use of this machine, the memory that it keeps and page-locks, and its end."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayface import machine
from rayface.machine import num_cpus, pin_exact_sizes, release_gpu_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such function")


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000\n", 8),
        ("400000 100000\n", 4),
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),
        ("3200000 100000\n", 8),
    ],
)
def test_num_cpus_of_a_container_are_those_of_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    assert num_cpus() == 8
    (tmp_path / "cpu.max").write_text(limit)
    assert num_cpus() == cpus


_FAULTS_OF_STEPS = """
import resource, sys, threading
import numpy as np
from rayface.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [np.ones(2**21, np.float32) for _ in range(16)]  # 8 MB each: two heaps of a thread
        while held:
            held.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def steps():
    before, kept = faults(), keep_freed_memory()
    faults()
    print(kept, before, faults())

if sys.argv[1] == "first":
    steps()
else:
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
"""


@glibc
@pytest.mark.parametrize("thread", ["first", "other"])
def test_keep_freed_memory_takes_no_page_faults_for_memory_that_was_freed(thread: str) -> None:
    """In a process of its own: it cannot be undone."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072", "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    command = [sys.executable, "-c", _FAULTS_OF_STEPS, thread]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < int(before) / 100


_EXIT = """
import atexit, ctypes, sys
from rayface.machine import end_without_exit_handlers

libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
atexit.register(print, "Python's own", flush=True)
print(end_without_exit_handlers())
sys.exit(3)
"""


@glibc
def test_end_without_exit_handlers_runs_those_of_python_and_keeps_the_status() -> None:
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", _EXIT], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (3, "True\nPython's own\n")


EXACT = "pinned_max_round_threshold_mb:64,pinned_max_cached_size_mb:64"
OWN = "pinned_max_cached_size_mb:256"
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@pytest.mark.parametrize(
    ("torch", "given", "wanted"),
    [
        ("2.13.0+cpu", {}, {"PYTORCH_ALLOC_CONF": EXACT}),
        (
            "2.14.1",
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:True,{EXACT}"},
        ),
        ("2.13.0", {"PYTORCH_CUDA_ALLOC_CONF": OWN}, {"PYTORCH_CUDA_ALLOC_CONF": OWN}),
        ("2.9.1", {}, {}),
    ],
    ids=["unset", "user's settings", "user's pinned memory", "older PyTorch"],
)
def test_pin_exact_sizes_adds_to_the_users_settings_of_pytorchs_allocator(
    monkeypatch: pytest.MonkeyPatch, torch: str, given: dict[str, str], wanted: dict[str, str]
) -> None:
    monkeypatch.setattr("rayface.machine.version", lambda _: torch)
    for name in NAMES:
        monkeypatch.setenv(name, given.get(name, ""))
    pin_exact_sizes()
    assert {name: os.environ[name] for name in NAMES if os.environ[name]} == wanted


def test_pin_exact_sizes_after_the_import_of_pytorch_is_what_its_allocator_reads() -> None:
    """Workers are forked from a process that has imported it."""
    code = (
        "import torch, rayface.machine; rayface.machine.pin_exact_sizes(); "
        "print(torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == EXACT


@pytest.mark.parametrize("used", [True, False])
def test_release_gpu_memory_empties_the_cache_of_a_process_that_has_used_a_gpu(
    monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    calls: list[str] = []
    cuda = SimpleNamespace(is_initialized=lambda: used, empty_cache=lambda: calls.append("emptied"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    release_gpu_memory()
    assert calls == ["emptied"] * used
