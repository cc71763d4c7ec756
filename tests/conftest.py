"""Fixtures that every folder of tests shares."""

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rayface.collector import collect_less_often

collect_less_often()  # as the command line does
# For tests that start Ray by themselves: at Ray's 15 its workers stand still beside other work on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray reads it when it is imported: what a thread calls after its session would start a Ray of its own.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Triton reads it when it is first imported: its kernels are tested on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Give the commands of all tests one environment: drivers of the fork server share what they import in one."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.fixture(scope="session")
def forks() -> Iterator[None]:
    """One fork server for the local Rays and the commands of all tests of a process: each would start its own."""
    from rayface.fork_server import OWN_MODULES
    from rayface.fork_server.launch import LIBRARIES, TRACKING, fork_server

    with fork_server((*LIBRARIES, *OWN_MODULES, *TRACKING)):
        yield


@pytest.fixture(scope="session")
def local_ray(forks: None) -> Iterator[None]:
    """One local Ray for all tests of a process, with more CPUs than the machine has: nothing depends on speed.

    As a verb starts it: a run on a Ray that rayface did not start has some five processes more, of 2 CPU seconds each.
    """
    from rayface.session import ray_session

    with ray_session(num_cpus=4, exact=True):
        yield


@pytest.fixture
def ray_address(local_ray: None) -> str:
    """RAY_ADDRESS of commands that run beside the tests: starting a Ray costs more than most of them."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of real faces; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("RAYFACE_FACES", Path(__file__).parent.parent.parent / "shared" / "data" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"RAYFACE_FACES: no folder of real faces at {folder}")
    return folder


@pytest.fixture
def foreground() -> Iterator[None]:
    """What runs in the background ignores SIGINT, and so would tests of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what rayface has logged since it was last asked, but for the starts and ends of phases."""
    caplog.set_level(logging.INFO, logger="rayface")

    def messages() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name != "rayface.progress"]
        caplog.clear()
        return found

    return messages


class ProgressRecorder:
    """A `progress.Display` that keeps (phase, parts done, parts in all), and calls `on_advance` with the last two."""

    def __init__(self) -> None:
        self.advances: list[tuple[str, int, int | None]] = []
        self.on_advance: Callable[[int, int | None], None] = lambda done, total: None

    @contextmanager
    def bar(
        self, name: str, rows: int | None = None, parts: int | None = None
    ) -> Iterator[Callable[[int, int | None], None]]:
        def show(done: int, total: int | None) -> None:
            self.advances.append((name, done, total))
            self.on_advance(done, total)

        yield show

    @contextmanager
    def training(self, run: Path, total_steps: int) -> Iterator[None]:
        yield


@pytest.fixture
def recorder() -> Iterator[ProgressRecorder]:
    """Records the progress of everything that runs in this process."""
    from rayface.progress import shown_on

    found = ProgressRecorder()
    with shown_on(found):
        yield found


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page as a browser has it after its scripts ran."""

    dom: str
    console: list[str]  # what its scripts wrote there, thrown errors among it


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Page]:
    """Opens a file in a headless Chromium; tests that need it are skipped where none is installed."""
    names = (os.environ.get("RAYFACE_BROWSER"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("RAYFACE_BROWSER: no Chromium or Chrome on PATH")
    profile = tmp_path_factory.mktemp("browser")

    def show(path: Path) -> Page:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        logs = ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000", "--dump-dom"]
        command = [found, *flags, *logs, path.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return Page(dom=done.stdout, console=re.findall(r"CONSOLE.*?\] (.*)", done.stderr))

    return show


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A bucket of a server that speaks S3."""

    endpoint: str
    bucket: str
    key: str = "AKIARAYFACETEST"
    secret: str = "no-secret"

    def uri(self, path: str) -> str:
        """The URI of a path in the bucket, credentials included: Ray's workers have no others."""
        place = f"endpoint_override={self.endpoint}&scheme=http&region=us-east-1"
        return f"s3://{self.key}:{self.secret}@{self.bucket}/{path}?{place}"

    def put(self, path: str, content: bytes) -> None:
        """Store an object."""
        from pyarrow import fs

        filesystem, inside = fs.FileSystem.from_uri(self.uri(path))
        with filesystem.open_output_stream(inside) as stream:
            stream.write(content)

    def files(self) -> dict[str, bytes]:
        """Every object of the bucket, by name."""
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(self.uri(""))
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        paths = [entry.path for entry in found if entry.type == fs.FileType.File]
        return {path.removeprefix(f"{self.bucket}/"): filesystem.open_input_file(path).readall() for path in paths}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """moto's server in a process of its own: Arrow holds the GIL while a stream is destroyed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield ObjectStore(endpoint=f"127.0.0.1:{port}", bucket="")
    process.kill()
    process.wait()


@pytest.fixture
def object_store(s3_server: ObjectStore, request: pytest.FixtureRequest) -> ObjectStore:
    """An empty bucket of this test's own."""
    from pyarrow import fs

    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50]
    store = replace(s3_server, bucket=f"{name}-{time.monotonic_ns() % 10**9}")
    filesystem, root = fs.FileSystem.from_uri(f"{store.uri('')}&allow_bucket_creation=true")
    filesystem.create_dir(root)
    return store


@pytest.fixture
def tf32_products() -> Iterator[None]:
    """TF32 is allowed in matrix products, as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 allows it in NVIDIA's containers."""
    import torch

    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = "none"
