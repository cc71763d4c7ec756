"""The road of the verbs under `ray job submit`, on a head node of this test's own."""

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayface.data.synth import synthesize

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]


TOKEN = secrets.token_hex(32)


def environment() -> dict[str, str]:
    """Of the head and of who submits to it: Ray's token authentication, and no other cluster."""
    others = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**others, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


def free_port() -> int:
    """A free port below the range from which Ray's own processes are given theirs."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start has ended"
        request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2):
            return
        time.sleep(0.3)
    raise TimeoutError(f"{url} does not answer after {seconds} s")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head node on loopback with a dashboard, stopped by its pid."""
    dashboard, log = free_port(), tmp_path_factory.mktemp("head") / "log"
    # Ray's sockets live below its temporary folder and their paths are limited to 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="rf"))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
                *(f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}", "--disable-usage-stats"),
            ],
            stdout=out,
            stderr=out,
            env=environment(),
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


def submit(head: str, working_dir: Path, *arguments: str) -> dict[str, object]:
    """Submit a verb, wait for it, and return its line of JSON."""
    command = [BIN / "ray", "job", "submit", f"--address={head}", "--working-dir", working_dir, "--"]
    done = subprocess.run(
        [*command, BIN / "rayface", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if re.match(r"\{.*\}\s*$", line)]
    return dict(json.loads(lines[-1]))


def submitted(head: str, folder: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """`rayface submit ARGUMENTS` from a folder that is not the clone."""
    command = [sys.executable, "-m", "rayface.cli", "submit", f"--address={head}", f"--python={sys.executable}"]
    variables = {**environment(), "RAY_AUTH_TOKEN": token, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, check=False, env=variables, cwd=folder
    )


@pytest.mark.long
def test_verbs_submitted_by_rayface_return_their_results_and_exit_codes(head, tmp_path):
    """The job's runtime environment holds this package and the named file."""
    data, run, folder = tmp_path / "set", tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "short.yaml").write_text("train: {epochs: 1}\n")
    synthesize(data, identities=20, images_per_identity=5, image_size=32)
    keys = ["--preset=debug", "-c", "short.yaml", f"data.train={data}", "tracking.enabled=false"]
    trained = submitted(head, folder, "train", *keys, f"train.output={run}", "--resume", "auto", "--json")
    assert (trained.returncode, json.loads(trained.stdout)["steps"]) == (0, 3), trained.stderr
    again = submitted(head, folder, "train", *keys, f"train.output={run}", "--resume", "auto", "--json")
    assert json.loads(again.stdout)["seconds"] == json.loads(trained.stdout)["seconds"]
    stranger = submitted(head, folder, "status", "job", token="0" * 64)
    assert stranger.returncode == 2
    assert len(stranger.stderr.splitlines()) == 1


@pytest.mark.long
def test_synth_and_train_submitted_as_ray_jobs_run_unchanged(head, tmp_path):
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
    uri = f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    emb = tmp_path / "emb"
    embedded = submit(head, working_dir, "embed", f"--model={run}", f"--data={data}", f"--out={emb}", uri)
    assert embedded["num_rows"] == 100
    experiment = tmp_path / "core.yaml"
    prune = {"embeddings": str(emb), "data": str(data), "keep": 0.6}
    experiment.write_text(json.dumps({"output": str(tmp_path / "out"), "stages": [{"name": "core", "prune": prune}]}))
    (stage,) = submit(head, working_dir, "run", str(experiment), uri)["stages"]
    assert stage["result"]["faces_out"] == 60
    assert stage["result"]["tracking_delivered"] is True
    assert json.loads((tmp_path / "out" / "core" / "dataset.json").read_text())["num_images"] == 60
