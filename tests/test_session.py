"""A Ray session: what it does to stdout, signals and priorities, and the room for workers on a cluster."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import ray

from rayface.embedding.embed import find_room
from rayface.interrupts import Terminated, terminable
from rayface.session import ray_session, require_workers, takes_gpu
from tests.autoscaler import autoscaled

SCRIPT = """
import os, subprocess, sys
import ray
from rayface.display import json_line
from rayface.session import ray_session

def chatty(*args, **options):
    print("from Python")
    os.write(1, b"from C++" + os.linesep.encode())
    subprocess.run(["echo", "from a child"], check=True)
    if args == ("ray://nobody",):
        raise ConnectionError("nobody there")

ray.init, ray.shutdown = chatty, chatty
print("before")
with ray_session():
    chatty()
try:
    with ray_session("ray://nobody"):
        raise AssertionError
except ValueError as error:
    print(error, file=sys.stderr)
json_line({"done": 1})
"""


def test_ray_session_with_other_writers_keeps_stdout_for_the_result():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    before, line = done.stdout.splitlines()
    assert (before, json.loads(line)) == ("before", {"done": 1})
    told = ["cluster.address: ray://nobody: no Ray cluster answers: nobody there"]
    assert sorted(done.stderr.splitlines()) == sorted(["from Python", "from C++", "from a child"] * 4 + told)


def test_ray_session_that_is_exact_starts_a_local_ray_with_that_many_cpus(monkeypatch):
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **options: asked.append((*args, options.get("num_cpus"))))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("rayface.machine.num_cpus", lambda: 8)
    monkeypatch.setattr("rayface.session._require_answer", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "a-cluster:6379")
    for options in ({"exact": True}, {}):
        with ray_session(num_cpus=3, **options):
            pass
    monkeypatch.delenv("RAY_ADDRESS")
    with ray_session(num_cpus=3):
        pass
    assert asked == [("local", 3), ("a-cluster:6379", None), ("local", 8)]


def test_ray_session_exports_no_metrics_of_a_local_ray_unless_they_are_asked_for(monkeypatch):
    """Ray's server of metrics listens on all interfaces, without a token."""
    name, asked = "RAY_enable_metrics_collection", []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **options: asked.append(os.environ.get(name)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv(name, raising=False)
    for options in ({}, {"prometheus": True}):
        with ray_session(**options):
            assert name not in os.environ
    assert asked == ["false", None]


def test_ray_session_whose_local_ray_does_not_start_in_time_is_one_line(monkeypatch):
    def late(*args, **options):
        raise Exception("The current node timed out\nduring startup.")  # as Ray does on a machine under load

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    told = (
        "no local Ray could be started: The current node timed out during startup: the machine is busy: run it again, "
        "or give --address"
    )
    with pytest.raises(ValueError, match=told), ray_session(exact=True):
        pass


def test_ray_session_at_a_job_server_or_a_dead_address_is_refused_at_once(monkeypatch):
    """Ray itself would try a dead address for minutes."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"cluster\.address: ray://{dead}: no Ray cluster answers: .*refused"):
            ray_session(f"ray://{dead}").__enter__()
    with pytest.raises(ValueError, match=r"it is that of the job server: run the verb there by `rayface submit"):
        ray_session("http://127.0.0.1:8265").__enter__()


def test_ray_session_after_ray_has_started_answers_sigterm_as_before(monkeypatch):
    """Ray installs a handler of its own, which ends with exit code 15."""

    def own(number, frame):
        raise SystemExit(number)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **options: signal.signal(signal.SIGTERM, own))
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    with pytest.raises(Terminated), terminable(), ray_session():
        terminate()

    def terminated_within(*args, **options):
        own(signal.SIGTERM, None)

    monkeypatch.setattr(ray, "init", terminated_within)
    with pytest.raises(Terminated), ray_session():
        pass


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_ray_session_with_a_temporary_folder_too_long_for_sockets_names_the_remedy(tmp_path, name):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    script = "from rayface.session import ray_session\nwith ray_session(): pass"
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS")
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**environment, name: str(folder)}, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: no local Ray could be started: {name}: {folder}: too long")
    assert f"set {name} to a folder of at most 36 characters" in last


@pytest.mark.long
def test_ray_session_gives_workers_the_priority_of_their_driver_and_keeps_its_token_private(tmp_path):
    script = (
        "import os, ray\n"
        "from rayface.session import ray_session\n"
        "with ray_session(exact=True):\n"
        "    there = ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())\n"
        "print(there - os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_worker_niceness"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr
    assert ((tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777, len(done.stderr)) == (0o600, 0), done.stderr


def test_require_workers_on_an_empty_cluster_asks_for_gpus_and_finds_those_that_came(monkeypatch):
    cluster = autoscaled(monkeypatch, most=4, gpus=1)
    require_workers("auto", 2.0, 3, wait=5)
    assert takes_gpu("auto")
    assert cluster.asked == [[{"CPU": 2.0}] * 3, []]  # which brought a GPU each
    assert find_room("auto") == (True, 3, 2)


def test_require_workers_waits_and_repeats_its_request_until_the_nodes_are_there(monkeypatch):
    cluster = autoscaled(monkeypatch, most=4)
    sent = []

    def slow(bundles):
        sent.append(bundles)
        if len(sent) == 3:  # the first ones were lost
            cluster.resources.append({"CPU": 2.0})

    monkeypatch.setattr(cluster, "request", slow)
    require_workers("cpu", 2.0, 1, wait=5)
    assert sent == [[{"CPU": 2.0}]] * 3 + [[]]


@pytest.mark.parametrize(("device", "gpus", "told"), [("auto", 0, True), ("auto", 1, False), ("cpu", 0, False)])
def test_require_workers_on_a_cluster_tells_why_it_takes_cpus(monkeypatch, messages, device, gpus, told):
    cluster = autoscaled(monkeypatch, most=4, gpus=gpus)
    cluster.request([{"CPU": 2.0}])
    require_workers(device, 1.0, 1, wait=5)
    line = "train.device: auto: no GPU in the cluster now: using CPUs; train.device=cuda waits for GPU nodes"
    assert messages() == [line] * told


ANNOUNCED = (
    "Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\n"
    "[2026-11-28 14:44:22,700 W 2175 2175] gcs_client.cc:210: Failed to get cluster ID from GCS server\n"
)


@pytest.mark.parametrize(("debug", "heard"), [(False, ""), (True, ANNOUNCED)])
def test_ray_starting_writes_its_backend_log_to_stderr_only_for_debugging(monkeypatch, capfd, debug, heard):
    levels = []

    def init(*args, **options):
        levels.append(os.environ.get("RAY_BACKEND_LOG_LEVEL"))
        os.write(2, ANNOUNCED.encode() + b"of another thread\n")

    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session(debug=debug):
        os.write(2, b"of the job\n")
    assert capfd.readouterr().err == f"{heard}of another thread\nof the job\n"
    assert levels == [None if debug else "fatal"]
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ
