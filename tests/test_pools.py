"""Pools end with the work or the process that they belong to."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rayface.pools import background_thread, thread_pool

SCRIPT = """
import os, time
from rayface.pools import process_pool

if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_thread_pool_after_an_error_ends_without_the_work_that_waits():
    done, begun = [], threading.Event()

    def work(number: int) -> None:
        begun.set()
        time.sleep(0.05)
        done.append(number)

    def interrupted() -> None:
        with thread_pool(1) as pool:
            for number in range(1000):
                pool.submit(work, number)
            begun.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(done) < 1000


def test_background_thread_ends_with_its_context_also_by_an_error():
    ended = []

    def wait(done: threading.Event) -> None:
        ended.append(done.wait(60))

    with background_thread(wait, "waits", wait=None):
        assert ended == []
    with pytest.raises(ValueError, match="of the context"), background_thread(wait, "waits", wait=None):
        raise ValueError("of the context")
    assert ended == [True, True]


def test_process_pool_whose_parent_is_killed_ends(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, path], env=environment, stdout=subprocess.PIPE, text=True)
    worker = Path("/proc", parent.stdout.readline().strip())
    assert (worker / "stat").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and worker.exists() and " Z " not in (worker / "stat").read_text():
        time.sleep(0.05)
    assert not worker.exists() or " Z " in (worker / "stat").read_text()
