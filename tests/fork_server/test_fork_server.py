"""Workers forked from one process: what they are like, how they end, and what is left when one side is gone."""

import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayface import cli
from rayface.cli import command_line
from rayface.fork_server import ADDRESS, DRIVER_MODULES, OWN_MODULES, driver, launch, protocol
from rayface.fork_server.forking import opened_a_gpu
from rayface.fork_server.launch import LIBRARIES, WORKER_SCRIPTS, ForkServerProcess, fork_server

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a fork server on Linux alone")

# Of modules that nothing else imports.
CLIENT = """
import sys
from rayface.fork_server import worker
worker.WORKER_MODULES = ("colorsys",)
worker.run(sys.argv[1], sys.argv[2:])
"""
TELL = """
import json, os, random, resource, signal, sys, numpy
modules = [name for name in ("colorsys", "torch") if name in sys.modules]
told = [os.getpid(), os.getcwd(), sys.argv[1:], os.environ.get("NAME"), modules, sys.path[:2], os.getsid(0)]
umask = os.umask(0)
limits = [umask, resource.getrlimit(resource.RLIMIT_NOFILE), [int(each) for each in signal.pthread_sigmask(0, [])]]
limits.append(open("/proc/self/oom_score_adj").read().strip())
print(json.dumps([*told, *limits, random.random(), numpy.random.rand()]))
"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def missing(path: Path) -> bool:
    return not path.exists()


@pytest.fixture
def server() -> Iterator[ForkServerProcess]:
    """A fork server that has imported NumPy."""
    server = ForkServerProcess(["numpy", "no_such_module"])
    yield server
    server.close()


def client_of(
    server: ForkServerProcess, program: Path, *arguments: str, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        ADDRESS: server.address,
        "NAME": "värde",
        "PYTHONPATH": "/somewhere",
        **(environment or {}),
    }
    command = [sys.executable, "-c", CLIENT, str(program), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


def test_forked_process_looks_for_garbage_as_the_command_line_does(server: ForkServerProcess, tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text("import gc; print(gc.get_threshold())")
    with client_of(server, tmp_path / "tell.py") as client:
        assert client.communicate(timeout=60)[0] == f"{gc.get_threshold()}\n" == "(10000, 10, 10)\n"


def test_forked_process_has_the_modules_and_what_its_client_has(server: ForkServerProcess, tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        os.umask(0o071)
        Path("/proc/self/oom_score_adj").write_text("700")

    def tell() -> list[Any]:
        program = tmp_path / "tell.py"
        with client_of(server, program, "a b", "--c=d", cwd=tmp_path, preexec_fn=limited) as client:
            out, _ = client.communicate(timeout=60)
        assert client.returncode == 0
        return json.loads(out)

    told = [tell(), tell()]
    for process, folder, arguments, name, modules, path, session, *limits, _, _ in told:
        assert [folder, arguments, name, modules] == [str(tmp_path), ["a b", "--c=d"], "värde", ["colorsys"]]
        assert path == [str(tmp_path), "/somewhere"]
        assert session == process  # Ray kills process groups
        assert limits == [0o071, [512, 1024], [signal.SIGINT], "700"]
    assert not set(told[0][-2:]) & set(told[1][-2:])  # their random numbers differ


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
    ],
)
def test_client_ends_as_the_forked_process_does(
    server: ForkServerProcess, tmp_path: Path, program: str, code: int
) -> None:
    (tmp_path / "end.py").write_text(program)
    with client_of(server, tmp_path / "end.py", stderr=subprocess.DEVNULL) as client:
        assert client.wait(60) == code


@pytest.mark.parametrize(
    ("environment", "forked"),
    [
        ({}, True),
        ({"PYTHONPATH": "own"}, True),
        ({"PYTHONPATH": "shadow"}, False),
        ({"LD_PRELOAD": ""}, False),
        ({"TORCH_LOGS": "+dynamo"}, False),
        ({"PYTHONUTF8": "0"}, False),
        ({"PYTHONUNBUFFERED": "1"}, True),
        ({"NUMBA_NUM_THREADS": "1"}, False),
    ],
)
def test_client_with_other_imports_is_not_forked(
    server: ForkServerProcess, tmp_path: Path, environment: dict[str, str], forked: bool
) -> None:
    """As with another interpreter: a fork would have the server's."""
    program = tmp_path / "tell.py"
    program.write_text("import sys; print('colorsys' in sys.modules)")
    for folder, module in (("own", "rayface"), ("shadow", "numpy")):
        (tmp_path / folder / module).mkdir(parents=True)
    if path := environment.get("PYTHONPATH"):
        environment = {"PYTHONPATH": str(tmp_path / path)}
    with client_of(server, program, environment=environment) as client:
        assert client.communicate(timeout=60)[0] == f"{forked}\n"


def test_process_between_server_and_worker_keeps_no_stream_of_the_driver(
    server: ForkServerProcess, tmp_path: Path
) -> None:
    """It lives as long as a worker, and who reads the driver's output waits for its end."""
    program = tmp_path / "tell.py"
    program.write_text("import os; print([os.readlink(f'/proc/{os.getppid()}/fd/{n}') for n in range(3)])")
    with client_of(server, program) as client:
        assert client.communicate(timeout=60)[0] == f"{['/dev/null'] * 3}\n"


def test_client_without_a_server_becomes_the_program(server: ForkServerProcess, tmp_path: Path) -> None:
    (tmp_path / "end.py").write_text("import sys; sys.exit(5 if sys.argv[1:] == ['a'] else 4)")
    server._process.kill()
    server._process.wait()
    with client_of(server, tmp_path / "end.py", "a") as client:
        assert client.wait(60) == 5


@pytest.mark.parametrize("sent", [b"", b"1234", b"A" * 8, (4).to_bytes(8) + b"null", (9).to_bytes(8) + b"[1, 2]"])
def test_client_that_sends_no_whole_request_does_not_stop_the_server(
    server: ForkServerProcess, tmp_path: Path, sent: bytes
) -> None:
    (tmp_path / "end.py").write_text("raise SystemExit(3)")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.address)
        connection.sendall(sent)
        if sent:  # the server waits 5 s for the one that is silent
            connection.shutdown(socket.SHUT_WR)
        with client_of(server, tmp_path / "end.py") as client:
            assert client.wait(60) == 3


def test_forked_process_whose_client_is_killed_is_killed_and_others_go_on(
    server: ForkServerProcess, tmp_path: Path
) -> None:
    program = tmp_path / "sleep.py"
    program.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with client_of(server, program) as one, client_of(server, program) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        process, survivor = int(one.stdout.readline()), int(other.stdout.readline())
        one.kill()
        wait_for(lambda: gone(process))
        assert not gone(survivor)
        os.kill(survivor, signal.SIGTERM)
        assert other.wait(60) == -signal.SIGTERM


def test_server_ends_with_the_process_that_started_it_and_leaves_no_file(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from rayface.fork_server.launch import ForkServerProcess as P; server = P([])\n"
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
        wait_for(partial(gone, int(server)))
        wait_for(partial(missing, Path(address).parent))


def test_server_that_follows_another_process_ends_with_that_one(server: ForkServerProcess, tmp_path: Path) -> None:
    (tmp_path / "end.py").write_text("import sys; sys.exit(5 if 'colorsys' in sys.modules else 4)")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as node:
        server.follow(node.pid)
        for _ in range(2):
            with client_of(server, tmp_path / "end.py") as client:
                assert client.wait(60) == 5
        assert os.readlink(f"/proc/{server._process.pid}/fd/1") == "/dev/null"
        node.communicate(b"\n", timeout=60)
    assert server._process.wait(60) == 0
    assert missing(Path(server.address).parent)


def test_server_that_has_ended_follows_nobody_and_leaves_no_file(server: ForkServerProcess) -> None:
    server._process.kill()
    server._process.wait()
    server.follow(os.getpid())
    assert missing(Path(server.address).parent)


def test_worker_with_another_rayface_on_its_path_has_that_one(server: ForkServerProcess, tmp_path: Path) -> None:
    """As of a job that brings its own: a node's fork server has imported the node's."""
    (tmp_path / "own" / "rayface").mkdir(parents=True)
    (tmp_path / "own" / "rayface" / "__init__.py").write_text("")
    (tmp_path / "tell.py").write_text("import rayface; print(rayface.__file__)")
    here = f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parents[2])!r})\n"
    for path in (tmp_path / "own", Path(cli.__file__).parents[2]):
        environment = {**os.environ, ADDRESS: server.address, "PYTHONPATH": str(path)}
        command = [sys.executable, "-c", here + CLIENT, str(tmp_path / "tell.py")]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert told == f"{path / 'rayface' / '__init__.py'}\n"


@pytest.mark.long
def test_modules_of_workers_leave_ray_alone_and_open_no_gpu() -> None:
    script = (
        "import importlib, sys; from rayface.fork_server.forking import opened_a_gpu\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print('ray' in sys.modules, opened_a_gpu())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *LIBRARIES, *OWN_MODULES], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"


IDENTIFIERS = """
import importlib, os, sys
for name in sys.argv[1:]: importlib.import_module(name)
import ray
for _ in range(2):
    if not os.fork():
        os.write(1, f"{ray.NodeID.from_random().hex()}\\n".encode())
        os._exit(0)
    os.wait()
"""


@pytest.mark.long
def test_processes_forked_after_the_import_of_ray_make_different_identifiers() -> None:
    def made(*modules: str) -> set[str]:
        command = [sys.executable, "-c", IDENTIFIERS, *modules]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert len(made(*DRIVER_MODULES)) == 2  # with those of workers
    assert len(made("ray.data")) == 1  # else with_ray is no longer needed


def test_call_runs_in_a_forked_process_and_here_if_that_fails(
    server: ForkServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch.call(os.getpid) == os.getpid()
    monkeypatch.setenv(ADDRESS, server.address)
    assert launch.call(os.getpid) != os.getpid()
    assert launch.call(int, "ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal for int"):
        launch.call(int, "x")
    assert launch.call(lambda: 5) == 5  # cannot be pickled
    server._process.kill()
    server._process.wait()
    assert launch.call(os.getpid) == os.getpid()


def test_gpu_that_is_open_is_found(tmp_path: Path) -> None:
    (tmp_path / "0").symlink_to("/dev/null")
    assert not opened_a_gpu(tmp_path)
    (tmp_path / "1").symlink_to("/dev/nvidia0")
    assert opened_a_gpu(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        ("train --preset debug", "driver server"),
        ("tune tune_configs/lr.yaml", "driver server"),
        ("run x.yaml", "driver server"),
        ("", ""),
        ("embed --data train", "driver"),
        ("embed --help", ""),
        ("check train", ""),
        ("train --help", ""),
        ("train --help --address auto", ""),
        ("train --address auto", "driver"),
        ("run x.yaml --address=auto", "driver"),
        ("train cluster.address=auto", "driver"),
        ("RAY_ADDRESS train", "driver"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_verbs_that_train_run_in_a_forked_driver_or_prestart_a_server(
    monkeypatch: pytest.MonkeyPatch, arguments: str, started: str, named: bool
) -> None:
    found: list[str] = []
    monkeypatch.setattr(cli, "prestart_fork_server", lambda: found.append("server"))
    monkeypatch.setattr(driver, "run_forked", lambda arguments: found.append("driver"))  # it finds no server
    monkeypatch.setattr(command_line, "run_command_line", lambda: None)
    if named:
        monkeypatch.setenv(ADDRESS, "somewhere")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if "RAY_ADDRESS" in arguments:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(sys, "argv", ["rayface", *arguments.removeprefix("RAY_ADDRESS ").split()])
    cli.main()
    assert found == [each for each in started.split() if named or each != "driver"]


def test_server_that_is_named_is_used_unless_it_has_other_imports_or_is_gone(
    server: ForkServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class OwnServer:
        def __init__(self, modules: Sequence[str]) -> None:
            started.append("own")
            self.address = "own"

        def close(self) -> None:
            started.append("closed")

    def used() -> str:
        monkeypatch.setenv(ADDRESS, server.address)
        with fork_server() as scripts:
            assert scripts == WORKER_SCRIPTS
            return os.environ[ADDRESS]

    monkeypatch.setattr(launch, "ForkServerProcess", OwnServer)
    monkeypatch.setenv(ADDRESS, server.address)
    launch.prestart_fork_server()
    assert used() == server.address == os.environ[ADDRESS]
    assert started == []
    with monkeypatch.context() as other:
        other.setenv("NUMBA_NUM_THREADS", "1")
        assert used() == "own"
    server._process.kill()
    server._process.wait()
    assert used() == "own"
    assert started == ["own", "closed"] * 2


DRIVER = """
import sys
if sys.argv[-1] in ("ray", "torch"):
    sys.modules[sys.argv.pop()] = sys
from rayface.fork_server import driver
driver.DRIVER_MODULES, driver.__file__ = ("colorsys",), sys.argv[1]
driver.run_forked(sys.argv[2:])
print("not forked")
"""


def driver_of(server: ForkServerProcess, program: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A command line that has a program run in its place."""
    command = [sys.executable, "-c", DRIVER, str(program), *arguments]
    environment = {**os.environ, ADDRESS: server.address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


WAITING = """
import signal, sys, time
ignored = [signal.getsignal(each) is signal.SIG_IGN for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
try:
    print(ignored, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_driver_ends_by_the_signals_that_its_command_gets(
    server: ForkServerProcess, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    (tmp_path / "wait.py").write_text(WAITING)

    def plain() -> None:  # whatever the tests run in
        for each in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with driver_of(server, tmp_path / "wait.py", preexec_fn=plain) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[False, False, False]\n"
        process.send_signal(sent)
        assert process.wait(60) == code


def test_driver_in_the_background_ignores_what_its_command_does(server: ForkServerProcess, tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(WAITING)

    def ignoring() -> None:  # as by nohup, and by a shell for what runs in the background
        for each in (signal.SIGHUP, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)

    with driver_of(server, tmp_path / "wait.py", preexec_fn=ignoring) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[True, True, False]\n"
        process.kill()  # and the driver with it


def test_command_without_a_server_runs_here_and_one_that_loses_it_ends_with_its_driver(
    server: ForkServerProcess, tmp_path: Path
) -> None:
    program = tmp_path / "wait.py"
    program.write_text("import os; print(os.getpid(), flush=True); input()")
    with driver_of(server, program, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        forked = int(process.stdout.readline())
        parent = int(Path(f"/proc/{forked}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)  # the template, which would tell how it ends
        wait_for(partial(gone, parent))
        assert process.poll() is None
        process.communicate("\n", timeout=60)
        assert process.returncode == 1
    for imported in ("ray", "torch"):  # by a program that may have changed what the command line does
        with driver_of(server, program, imported) as process:
            assert process.communicate(timeout=60)[0] == "not forked\n"
    server._process.kill()
    server._process.wait()
    with driver_of(server, program) as process:
        assert process.communicate(timeout=60)[0] == "not forked\n"


def test_processes_share_a_template_unless_what_imports_read_differs(server: ForkServerProcess, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text("import os; print(os.getppid(), os.environ.get('PL_DISABLE_FORK'))")

    def forked(**variables: str) -> list[str]:
        with client_of(server, program, environment={**os.environ, **variables}) as client:
            return client.communicate(timeout=60)[0].split()

    first, none = forked()
    assert none == "None"
    assert forked(PL_DISABLE_FORK="1", OLDPWD="/", RAY_JOB_ID="01000000") == [first, "1"]
    assert forked(RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES="1") == [first, "None"]
    assert forked(MPLBACKEND="agg")[0] != first


def test_changed_code_has_new_templates(tmp_path: Path) -> None:
    """On a node, whose server goes on when rayface is upgraded or edited."""
    source, package = Path(cli.__file__).parents[1], tmp_path / "rayface"
    shutil.copytree(source / "fork_server", package / "fork_server")
    shutil.copyfile(source / "collector.py", package / "collector.py")
    (package / "__init__.py").write_text("")
    program = tmp_path / "parent.py"
    program.write_text("import os; print(os.getppid())")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + (
        "from rayface.fork_server.launch import ForkServerProcess; server = ForkServerProcess([])\n"
        "print(server.address, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        server: Any = SimpleNamespace(address=process.stdout.readline().strip())

        def template() -> str:
            with client_of(server, program) as client:
                return client.communicate(timeout=60)[0]

        before = [template(), template()]
        (package / "new.py").write_text("")
        after = [template(), template()]
        (package / "new.py").unlink()
        last = [template(), template()]
        process.communicate("\n", timeout=60)
    assert before[0] == before[1] != after[0] == after[1] != last[0] == last[1]


def test_driver_has_the_rayface_of_its_command(server: ForkServerProcess, tmp_path: Path) -> None:
    """Which may be another one than the node's: a clone in which it was typed."""
    package = tmp_path / "rayface"
    shutil.copytree(Path(cli.__file__).parents[1] / "fork_server", package / "fork_server")
    shutil.copy(Path(cli.__file__).parents[1] / "machine.py", package)
    (package / "cli").mkdir()
    for each in (package, package / "cli"):
        (each / "__init__.py").write_text("")
    (package / "cli" / "command_line.py").write_text(
        "import os, sys, rayface\n"
        "def run_command_line():\n"
        "    parent = open(f'/proc/{os.getppid()}/cmdline').read()\n"
        "    print(rayface.__file__, sys.argv, 'server.py' in parent)\n"
        "    sys.exit(3)"
    )
    script = "from rayface.fork_server import driver; driver.DRIVER_MODULES = ('colorsys',); driver.run_forked(['a'])"
    environment = {**os.environ, ADDRESS: server.address}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    told = f"{package / '__init__.py'} ['rayface', 'a'] True\n"
    assert (done.returncode, done.stdout) == (3, told), done.stderr


def test_server_of_another_user_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(str(tmp_path / "forks"))
        listener.listen()
        connection.connect(str(tmp_path / "forks"))
        with pytest.raises(PermissionError):
            protocol.send_request(connection, "a.py")
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        with accepted, pytest.raises(BlockingIOError):
            accepted.recv(1)


def test_process_that_ends_as_one_killed_by_a_signal_that_it_blocks_says_so() -> None:
    script = "import signal; from rayface.fork_server.protocol import end_as\n"
    script += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); end_as(signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 128 + signal.SIGTERM


def test_command_line_is_imported_where_there_is_no_module_resource() -> None:
    """As on Windows."""
    script = "import sys; sys.modules['resource'] = None; import rayface.cli.command_line, rayface.plan.backbone_cost"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prestarted_server_that_nobody_takes_is_ended() -> None:
    launch.prestart_fork_server()
    (server,) = launch._prestarted
    launch.prestart_fork_server()
    assert launch._prestarted == [server]
    launch.close_prestarted()
    assert launch._prestarted == []
    assert gone(server._process.pid)


WORKERS = """
import os, ray
from rayface.fork_server import launch
from rayface.session import ray_session

@ray.remote(num_cpus=0)
class Worker:
    def tell(self):
        import sys
        parent = open(f"/proc/{os.getppid()}/cmdline").read()
        return os.getpid(), os.getppid() if "fork_server/server.py" in parent else None, "torch" in sys.modules

launch.prestart_fork_server()
server = launch._prestarted[0]
before = dict(os.environ)
import cv2  # as a driver does before it starts Ray
assert os.environ != before, "nothing to test: cv2 leaves the environment alone"
with ray_session(num_cpus=1, exact=True):
    first, second = Worker.remote(), Worker.remote()
    forked = ray.get([first.tell.remote(), second.tell.remote()])
    (_, template, _), (_, other, _) = forked
    assert template == other is not None, forked
    server._process.kill()
    server._process.wait()
    _, parent, _ = ray.get(Worker.remote().tell.remote())
    assert parent is None
    assert ray.get(first.tell.remote()) == forked[0]  # goes on
print("done")
"""


@pytest.mark.long
def test_workers_of_a_local_ray_are_forked_and_start_without_a_server_that_has_died() -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
