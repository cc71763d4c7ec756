"""What the process may use of this machine, the memory that it keeps, and its end."""

import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such function")

_FAULTS_OF_STEPS = """
import resource
import numpy as np
from rayface.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(2**21, np.float32)  # 8 MB, taken and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
print(keep_freed_memory(), before, faults())
"""


@glibc
def test_keep_freed_memory_takes_no_page_faults_for_memory_that_was_freed() -> None:
    """In a process of its own: it cannot be undone."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072", "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_STEPS], capture_output=True, text=True, check=True, env=environment
    )
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < int(before) / 10


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
