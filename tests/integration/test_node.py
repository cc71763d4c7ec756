"""A node of a cluster whose workers are forked, of the rayface that a job brings, and drivers that run on it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import rayface
from rayface.data.synth import synthesize
from rayface.machine import num_cpus
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


@contextmanager
def started_node(scratch: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Run a node that forks; yield its address and the variable that it prints."""
    address = f"127.0.0.1:{free_port()}"
    (scratch / "tmp").mkdir()
    with (scratch / "log").open("wb") as log:
        node = subprocess.Popen(
            [
                *(sys.executable, "-m", "rayface.fork_server.node", "--head", "--block", "--num-cpus=2"),
                *("--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"),
                *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={scratch / 'ray'}"),
            ],
            env={**ENVIRONMENT, "TMPDIR": str(scratch / "tmp")},
            stdout=log,
            stderr=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 120
        while subprocess.run(
            [BIN / "ray", "health-check", "--address", address], env=ENVIRONMENT, check=False
        ).returncode:
            assert node.poll() is None, "the node has ended"
            assert time.monotonic() < deadline, "the node does not start"
        printed = re.search("export (RAYFACE_FORK_SERVER)=(.*)", (scratch / "log").read_text())
        assert printed is not None
        yield address, {printed[1]: printed[2]}
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=60)


@pytest.mark.long
def test_node_forks_its_workers_with_the_rayface_of_the_job_and_leaves_nothing(scratch: Path, tmp_path: Path) -> None:
    own = tmp_path / "rayface"
    own.mkdir()
    (own / "__init__.py").write_text("")
    with started_node(scratch) as (address, _):
        command = [sys.executable, "-c", DRIVER, address, str(own.parent)]
        told = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
        plain, with_own, with_variable = json.loads(told)
        (socket,) = (scratch / "tmp").glob("rayface-*/forks")
    for parent, has_torch, _ in (plain, with_own):
        assert "fork_server/server.py" in parent
        assert has_torch
    assert [plain[2], with_own[2]] == [rayface.__file__, str(own / "__init__.py")]
    assert "fork_server/server.py" not in with_variable[0]  # PyTorch reads it when it is imported
    deadline = time.monotonic() + 60
    while socket.parent.exists():
        assert time.monotonic() < deadline, "the fork server is still there"
        time.sleep(0.1)


# Imported by the driver and by every worker.
PLUGIN = """
import os, sys
from pathlib import Path
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
who = "driver" if sys.argv[0] == "rayface" else "worker"
told = f"{'server.py' in parent} {os.getppid()}"
if who == "driver":
    from threadpoolctl import threadpool_info
    told += f" {max(pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas')}"
(Path(__file__).parent / f"{who} {os.getpid()}").write_text(told)
"""


@pytest.mark.long
def test_drivers_on_a_node_are_forked_and_train_in_its_workers(scratch: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "set", identities=20, images_per_identity=6, image_size=32, processes=1)
    (tmp_path / "parents.py").write_text(PLUGIN)
    drivers: list[list[str]] = []
    with started_node(scratch) as (address, variable):
        keys = [f"data.train={tmp_path}/set", f"train.output={tmp_path}/run", "train.num_workers=2"]
        embed = ["embed", f"--model={tmp_path}/run", f"--data={tmp_path}/set", f"--out={tmp_path}/emb"]
        for verb, of in ((["train", "--preset=debug", *keys], "run"), ([*embed, "tracking.enabled=false"], "emb")):
            command = [sys.executable, "-m", "rayface.cli", *verb, "--json"]
            done = subprocess.run(
                [*command, "--import", "parents", "--address", address],
                cwd=tmp_path,
                env={**ENVIRONMENT, **variable},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)
            assert (tmp_path / of).is_dir()
            drivers.append(sorted(path.read_text() for path in tmp_path.glob("driver *")))
    workers = [path.read_text() for path in tmp_path.glob("worker *")]
    assert len(workers) >= 2
    assert [each for each in workers if not each.startswith("True")] == []
    assert [len(each) for each in drivers] == [1, 2]
    assert drivers[1] == drivers[0] * 2  # of one template
    assert re.fullmatch(rf"True \d+ {num_cpus()}", drivers[0][0])
