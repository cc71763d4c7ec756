"""Every verb under `ray job submit`, on a head node of this test's own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start has ended"
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise TimeoutError(f"nothing listens on port {port} after {seconds} s")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head node on loopback with a dashboard, stopped by its pid."""
    dashboard, log = free_port(), tmp_path_factory.mktemp("head") / "log"
    # Ray's sockets live below its temporary folder and their paths are limited to 107 characters.
    scratch = Path(f"/tmp/rf-{os.getpid()}")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
                *(f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}", "--disable-usage-stats"),
            ],
            stdout=out,
            stderr=out,
            env=environment,
        )
    try:
        wait_for(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


def submit(head: str, working_dir: Path, *arguments: str) -> dict[str, object]:
    """Submit a verb, wait for it, and return its line of JSON."""
    command = [BIN / "ray", "job", "submit", f"--address={head}", "--working-dir", working_dir, "--"]
    done = subprocess.run(
        [*command, BIN / "rayface", *arguments, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r"\{.*\}\s*$", line)]
    return dict(json.loads(lines[-1]))


def test_synth_and_train_run_unchanged_as_jobs(head, tmp_path):
    working_dir = tmp_path / "code"
    shutil.copytree(REPOSITORY / "rayface", working_dir / "rayface", ignore=shutil.ignore_patterns("__pycache__"))
    data, run = tmp_path / "set", tmp_path / "run"
    drawn = submit(head, working_dir, "synth", str(data), "--identities=20", "--images-per-identity=5", "--pairs=40")
    assert drawn["images"] == 100
    settings = {
        "data.train": data,
        "evaluate.data": data,
        "evaluate.pairs": data / "pairs.csv",
        "train.output": run,
        # Workers on both CPUs: reading must find its place beside them.
        "train.num_workers": 2,
        "tracking.uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    trained = submit(head, working_dir, "train", "--preset=debug", *(f"{k}={v}" for k, v in settings.items()))
    assert trained["steps"] == 3
    assert trained["tracking_delivered"] is True
    assert json.loads((run / "result.json").read_text())["num_pairs"] == trained["num_pairs"] == 40
    assert (run / "model.safetensors").stat().st_size > 1000
