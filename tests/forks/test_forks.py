"""Workers forked from one process: what they are like, how they end, and what is left when one side is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401  # what asks whether it is connected

from rayface.forks import launch
from rayface.forks.launch import MODULES, ForkServer
from rayface.forks.protocol import ADDRESS
from rayface.forks.server import opened_a_gpu

ASK = """
import os, socket, sys
from rayface.forks.protocol import ADDRESS, ask, status_of_forked
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ[ADDRESS])
    ask(connection, sys.argv[1], sys.argv[2:])
    print("status", status_of_forked(connection))
"""
TELL = """
import json, os, random, sys, numpy
modules = [name for name in ("colorsys", "torch") if name in sys.modules]
told = [os.getpid(), os.getcwd(), sys.argv[1:], os.environ.get("NAME"), modules, sys.path[:2], os.getsid(0)]
print(json.dumps([*told, random.random(), numpy.random.rand()]))
"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A fork server that has imported NumPy and a module that nothing else imports."""
    server = ForkServer(["numpy", "no_such_module", "colorsys"])
    yield server
    server.close()


def asked(server: ForkServer, program: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, ADDRESS: server.address, "NAME": "värde", "PYTHONPATH": "/somewhere"}
    command = [sys.executable, "-c", ASK, str(program), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_forked_process_has_the_modules_and_what_its_asker_has(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)

    def tell() -> list[Any]:
        out, _ = asked(server, tmp_path / "tell.py", "a b", "--c=d", cwd=tmp_path).communicate(timeout=60)
        first, last = out.splitlines()
        assert last == "status 0"
        return json.loads(first)

    wait_for(lambda: tell()[4])  # it serves before all is imported
    told = [tell(), tell()]
    for process, folder, arguments, name, modules, path, session, *_ in told:
        assert [folder, arguments, name, modules] == [str(tmp_path), ["a b", "--c=d"], "värde", ["colorsys"]]
        assert path == [str(tmp_path), "/somewhere"]
        assert session == process  # Ray kills process groups
    assert not set(told[0][-2:]) & set(told[1][-2:])  # their random numbers differ


@pytest.mark.parametrize(
    ("program", "status"),
    [("raise SystemExit(3)", 3 << 8), ("1 / 0", 1 << 8), ("import os; os.kill(os.getpid(), 9)", signal.SIGKILL)],
)
def test_asker_is_told_how_the_forked_process_has_ended(
    server: ForkServer, tmp_path: Path, program: str, status: int
) -> None:
    (tmp_path / "end.py").write_text(program)
    out, _ = asked(server, tmp_path / "end.py", stderr=subprocess.DEVNULL).communicate(timeout=60)
    assert out == f"status {int(status)}\n"


def test_forked_process_whose_asker_is_killed_is_killed_and_others_go_on(server: ForkServer, tmp_path: Path) -> None:
    program = tmp_path / "sleep.py"
    program.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with asked(server, program) as one, asked(server, program) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        process, survivor = int(one.stdout.readline()), int(other.stdout.readline())
        one.kill()
        wait_for(lambda: gone(process))
        assert not gone(survivor)
        os.kill(survivor, signal.SIGTERM)
        assert other.stdout.readline() == f"status {int(signal.SIGTERM)}\n"


def test_server_ends_with_the_process_that_started_it_and_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from rayface.forks.launch import ForkServer; server = ForkServer([])\n"
        "print(server._process.pid, server.address, flush=True); sys.stdin.readline()\n"
        "os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == 'killed' else None"
    )
    for how in ("killed", "ended"):
        command = [sys.executable, "-c", script, how]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            server, address = process.stdout.readline().split()
            assert Path(address).parent.stat().st_mode & 0o077 == 0
            process.communicate("end\n", timeout=60)
        wait_for(lambda server=int(server): gone(server))
        wait_for(lambda address=address: not Path(address).parent.exists())


def test_modules_of_workers_leave_ray_alone_and_open_no_gpu() -> None:
    script = (
        "import importlib, sys; from rayface.forks.server import opened_a_gpu\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print('ray' in sys.modules, opened_a_gpu())"
    )
    done = subprocess.run([sys.executable, "-c", script, *MODULES], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_gpu_that_is_open_is_found(tmp_path: Path) -> None:
    (tmp_path / "0").symlink_to("/dev/null")
    assert not opened_a_gpu(tmp_path)
    (tmp_path / "1").symlink_to("/dev/nvidia0")
    assert opened_a_gpu(tmp_path)


def test_begin_with_a_cluster_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.begin("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    launch.begin(None)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    launch.begin(None)
    assert launch._begun == []


WORKERS = """
import os, ray
from rayface.forks import launch
from rayface.session import ray_session

@ray.remote(num_cpus=0)
class Worker:
    def tell(self):
        import sys
        return os.getppid(), "torch" in sys.modules

launch.begin(None)
server = launch._begun[0]
with ray_session(num_cpus=1, exact=True):
    first, second = Worker.remote(), Worker.remote()
    forked = ray.get([first.tell.remote(), second.tell.remote()])
    assert forked[0][0] == forked[1][0] == server._process.pid, forked
    server._process.kill()
    server._process.wait()
    parent, _ = ray.get(Worker.remote().tell.remote())
    assert parent != server._process.pid
    assert ray.get(first.tell.remote())[1] == forked[0][1]  # goes on
print("done")
"""


def test_workers_of_a_local_ray_are_forked_and_start_without_a_server_that_has_died() -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
