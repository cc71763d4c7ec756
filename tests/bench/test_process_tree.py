"""Processes below one, and their memory, on Linux."""

import os
import subprocess
import sys

import numpy as np
import pytest

from rayface.bench.process_tree import peak_bytes, private_bytes, process_tree, ray_workers

MIB = 2**20


@pytest.fixture
def child():
    """A process below this one that waits, by a name as Ray gives to its workers."""
    code = "import sys; open('/proc/self/comm', 'w').write('ray::task'); print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.stdin.close()
    process.wait()


def test_process_tree_of_this_process_holds_it_and_its_children(child):
    found = {process.pid: process for process in process_tree(os.getpid())}
    assert {os.getpid(), child.pid} <= found.keys()
    assert os.getppid() not in found
    assert found[child.pid].name == "ray::task"
    assert found[os.getpid()].cpu_seconds > 0


def test_ray_workers_below_a_process_are_those_of_their_name(child):
    assert child.pid in ray_workers(os.getpid())
    assert os.getpid() not in ray_workers(os.getpid())
    assert ray_workers(child.pid) == [child.pid]


def test_private_bytes_of_a_process_grow_by_what_it_allocates():
    before = private_bytes(os.getpid())
    kept = np.ones(64 * MIB, np.uint8)
    assert private_bytes(os.getpid()) - before > 48 * MIB
    assert kept.sum() == 64 * MIB


def test_peak_bytes_of_a_process_stay_until_they_are_reset():
    kept = np.ones(64 * MIB, np.uint8)
    high = peak_bytes(os.getpid())
    del kept
    assert peak_bytes(os.getpid()) > high - MIB  # Linux counts in batches
    assert peak_bytes(os.getpid(), reset=True) < high - 32 * MIB


def test_memory_of_a_process_that_is_gone_is_unknown():
    gone = 2**22 + 1  # beyond what Linux gives
    assert (peak_bytes(gone), peak_bytes(gone, reset=True), private_bytes(gone)) == (0, 0, 0)
    assert process_tree(gone) == []
