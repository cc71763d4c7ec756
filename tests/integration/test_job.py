"""The road of the verbs as Ray jobs, on a head node of this test's own: a token, every path in an object store."""

import contextlib
import itertools
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayface.storage import RemotePath
from rayface.training.checkpointing.checkpoint import all_in
from rayface.training.run_directory import RunDirectory
from tests.small_model import save_small_model

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
TOKEN = secrets.token_hex(32)
STORE_SECRET = "pl4nted-secret-of-the-store"
TUNE = {
    "preset": "debug",
    "config": {"train": {"batch_size": 12, "epochs": 1}},
    "search": {"optim.lr": [0.01, 0.1]},
    "objectives": [{"metric": "loss", "mode": "min"}],
    "sweep": {"sampler": "grid"},
}


def environment() -> dict[str, str]:
    """Of the head and of who submits to it: Ray's token authentication, and no other cluster."""
    others = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**others, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


def environment_of_node(disk: Path) -> dict[str, str]:
    """Of the head alone: the store's credentials, and a disk for what a node keeps."""
    own = {"XDG_STATE_HOME": f"{disk / 'state'}", "RAYFACE_CACHE": f"{disk / 'cache'}"}
    return {**environment(), **own, "AWS_ACCESS_KEY_ID": "AKIAPL4NTED", "AWS_SECRET_ACCESS_KEY": STORE_SECRET}


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


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head node: its job server, the folder of its log and its disk, and that of Ray's session."""

    url: str
    folder: Path
    session: Path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node on loopback with a dashboard, stopped by its pid."""
    dashboard, folder = free_port(), tmp_path_factory.mktemp("head")
    # Ray's sockets live below its temporary folder and their paths are limited to 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="rf"))
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rayface.fork_server.node", "--head", "--block", "--num-cpus=2"),
                "--node-ip-address=127.0.0.1",
                *(f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={scratch}", "--disable-usage-stats"),
            ],
            stdout=out,
            stderr=out,
            env=environment_of_node(folder),
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for(url, process)
        yield Head(url=url, folder=folder, session=scratch)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


def command(head: Head, *arguments: object) -> list[str]:
    """Return the command line of `rayface submit ARGUMENTS`."""
    submit = [sys.executable, "-m", "rayface.cli", "submit", f"--address={head.url}", f"--python={sys.executable}"]
    return [*submit, *map(str, arguments)]


def started(
    arguments: list[str], folder: Path, token: str = TOKEN, modules: str = os.pathsep.join(sys.path)
) -> subprocess.Popen[str]:
    """Start a command in a folder that is not the clone."""
    variables = {**environment(), "RAY_AUTH_TOKEN": token, "PYTHONPATH": modules}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(arguments, text=True, env=variables, cwd=folder, **pipes)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a job that has to succeed; return its line of JSON."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors
    return dict(json.loads([line for line in out.splitlines() if re.match(r"\{.*\}\s*$", line)][-1]))


def kill_driver(process: subprocess.Popen[str], verb: str, output: str, when: Callable[[], bool]) -> None:
    """Kill the process of a job that runs a verb with an output, when a condition holds."""
    deadline = time.monotonic() + 240
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if words[1:4] == ["-m", "rayface.cli", verb] and output in words:
                os.kill(int(path.parent.name), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode not in (0, None)


@pytest.mark.long
def test_road_in_a_store_submitted_with_a_token_survives_a_kill_and_keeps_secrets(
    head, object_store, tmp_path, monkeypatch
):
    """From a folder that is not the clone: drawn set, embeddings, core set, training killed once, scores, sweep."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "short.yaml").write_text("train: {epochs: 5, batch_size: 24, checkpoint_every: 4, num_workers: 2}\n")
    (here / "try.yaml").write_text(json.dumps(TUNE))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = f"s3://{object_store.bucket}/%s?endpoint_override={object_store.endpoint}&scheme=http&region=us-east-1"
    data, run = store % "set", store % "run"
    tracking = f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"

    def submitted(*arguments: object) -> dict[str, Any]:
        return ended(started(command(head, *arguments, "--json"), here))

    code = tmp_path / "code"  # the road of `ray job submit`, which sends nothing by itself
    shutil.copytree(REPOSITORY / "rayface", code / "rayface", ignore=shutil.ignore_patterns("__pycache__"))
    job = [str(BIN / "ray"), "job", "submit", f"--address={head.url}", f"--working-dir={code}", "--"]
    plain = [*job, str(BIN / "rayface"), "synth"]
    shape = ["--identities=20", "--images-per-identity=12", "--pairs=40", "--image-size=32", "--json"]
    drawn = ended(started([*plain, data, *shape], here, modules=""))
    assert drawn["images"] == 240

    save_small_model(tmp_path / "model", image_size=32)
    for path in (tmp_path / "model").iterdir():
        object_store.put(f"model/{path.name}", path.read_bytes())
    model, emb, core = store % "model", store % "emb", store % "core"
    assert submitted("embed", f"--model={model}", f"--data={data}", f"--out={emb}", tracking)["num_rows"] == 240
    keep = ("--keep=0.6", "--write-shards", tracking)
    assert submitted("prune", f"--embeddings={emb}", f"--data={data}", f"--out={core}", *keep)["faces_out"] == 144

    keys = ["--preset=debug", "-c", "short.yaml", f"data.train={core}", f"train.output={run}", tracking]
    train = command(head, "train", *keys, "--resume", "auto", "--json")
    directory = RemotePath(object_store.uri("run"))
    kill_driver(started(train, here), "train", f"train.output={run}", lambda: bool(all_in(directory)))
    resumed = ended(started(train, here))
    assert (resumed["steps"], resumed["tracking_delivered"]) == (30, True)
    losses = RunDirectory(directory).read_metrics()["train/loss"]
    assert [step for step, _, _ in losses] == [*range(1, 31)]

    pairs, scores = store % "set/pairs.csv", store % "scores"
    scored = submitted("evaluate", f"--model={run}", f"--data={data}", f"--pairs={pairs}", f"--out={scores}", tracking)
    assert scored["num_pairs"] == 40
    sweep = submitted("tune", "try.yaml", f"sweep.output={store % 'sweep'}", f"data.train={core}", tracking)
    assert (sweep["trials"], sweep["complete"]) == (2, 2)

    stranger = started(command(head, "status", "job"), here, token="0" * 64)
    _, errors = stranger.communicate(timeout=60)
    assert (stranger.returncode, len(errors.splitlines())) == (2, 1)
    files = object_store.files()
    made = ("set/dataset.json", "core/dataset.json", "run/model.safetensors", "scores/report.html", "sweep/best.yaml")
    assert set(made) <= files.keys()
    for path in itertools.chain.from_iterable(folder.rglob("*") for folder in (tmp_path, head.folder, head.session)):
        if path.is_file():
            files[str(path)] = path.read_bytes()
    assert not [name for name, content in files.items() if STORE_SECRET.encode() in content]
    assert {path.name for path in here.iterdir()} == {"short.yaml", "try.yaml"}  # and no folder called `s3:`


# Imported by the driver before it finds that there is no data.
PLUGIN = """
import os
from pathlib import Path
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
Path("FOLDER", f"{os.getpid()}").write_text(f"{'server.py' in parent} {os.getppid()}")
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a fork server on Linux alone")
def test_drivers_of_submitted_jobs_are_forked_from_one_process(head, tmp_path):
    here, told = tmp_path / "here", tmp_path / "told"
    here.mkdir()
    told.mkdir()
    (here / "parents.py").write_text(PLUGIN.replace("FOLDER", str(told)))
    for _ in range(2):
        failing = started(command(head, "train", "--import", "parents", f"data.train={tmp_path}/none"), here)
        out, errors = failing.communicate(timeout=300)
        assert failing.returncode not in (0, None)
        assert "data.train" in out + errors
    first, second = (path.read_text() for path in told.iterdir())
    assert first == second
    assert first.startswith("True")
