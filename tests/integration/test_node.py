"""A node of a cluster whose workers are forked, of the rayface that a job brings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayface
from tests.integration.test_job import BIN, free_port

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a fork server on Linux alone")

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
DRIVER = """
import json, sys, ray

@ray.remote(num_cpus=0)
class Worker:
    def tell(self):
        import os, rayface
        return open(f"/proc/{os.getppid()}/cmdline").read(), "torch" in sys.modules, rayface.__file__

environments = [{}, {"env_vars": {"PYTHONPATH": sys.argv[2]}}, {"env_vars": {"TORCH_LOGS": "+dynamo"}}]
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
workers = [Worker.options(runtime_env=environment).remote() for environment in environments]
print(json.dumps(ray.get([worker.tell.remote() for worker in workers], timeout=100)))
"""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for Ray and for the fork server's socket; paths of sockets are limited to 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rf"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_node_forks_its_workers_with_the_rayface_of_the_job_and_leaves_nothing(scratch: Path, tmp_path: Path) -> None:
    own = tmp_path / "rayface"
    own.mkdir()
    (own / "__init__.py").write_text("")
    port = free_port()
    temporary = scratch / "tmp"
    temporary.mkdir()
    node = subprocess.Popen(
        [
            *(sys.executable, "-m", "rayface.fork_server.node", "--head", "--block", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"),
            f"--temp-dir={scratch / 'ray'}",
        ],
        env={**ENVIRONMENT, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        command = [sys.executable, "-c", DRIVER, f"127.0.0.1:{port}", str(own.parent)]
        deadline = time.monotonic() + 120
        while subprocess.run(
            [BIN / "ray", "health-check", "--address", command[3]], env=ENVIRONMENT, check=False
        ).returncode:
            assert node.poll() is None, "the node has ended"
            assert time.monotonic() < deadline, "the node does not start"
        told = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
        plain, with_own, with_variable = json.loads(told)
        (socket,) = temporary.glob("rayface-*/forks")
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=60)
    for parent, has_torch, _ in (plain, with_own):
        assert "fork_server/server.py" in parent
        assert has_torch
    assert [plain[2], with_own[2]] == [rayface.__file__, str(own / "__init__.py")]
    assert "fork_server/server.py" not in with_variable[0]  # PyTorch reads it when it is imported
    while socket.parent.exists():
        assert time.monotonic() < deadline, "the fork server is still there"
        time.sleep(0.1)
