"""The driver's side: start the fork server, and tell nodes of Ray to fork their workers from it."""

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rayface.fork_server import ADDRESS

# Not Ray: its core in C++ reads the environment when it is imported, and every worker has another one.
PRELOADED = (
    "pandas",
    "pyarrow.fs",
    "pyarrow.parquet",
    "torch",
    "rayface.training.builders",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "rayface.heads.row_kernels",
    "scipy.sparse.csgraph",
    "rayface.data.decode",
)
"""What workers of a training import."""
_WORKER = Path(__file__).with_name("worker.py")
_prestarted: list["ForkServerProcess"] = []


class _UnsupportedError(Exception):
    """This machine cannot have a fork server."""


class ForkServerProcess:
    """A process that imports modules and is forked on request, see rayface.fork_server.server."""

    def __init__(self, modules: Sequence[str] = PRELOADED) -> None:
        _require_support()
        with contextlib.ExitStack() as failed:
            try:
                folder = tempfile.mkdtemp(prefix="rayface-")  # other users cannot enter it
                failed.callback(shutil.rmtree, folder, ignore_errors=True)
                self.address = str(Path(folder) / "forks")
                """Path of its socket."""
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(self.address)  # fails where TMPDIR is too long
                    listener.listen(64)
                    self._process = _start(listener, modules)
            except OSError as error:
                raise _UnsupportedError from error
            self._remove = failed.pop_all()
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; those that it has forked go on."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.communicate()
        self._remove.close()


def _require_support() -> None:
    if sys.platform != "linux":
        raise _UnsupportedError
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:  # a Python that was built without it, a kernel before 5.3, a sandbox
        raise _UnsupportedError from error


def _start(listener: socket.socket, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rayface.fork_server.server", str(listener.fileno()), *modules],
        stdin=subprocess.PIPE,  # its end tells the server that this process is gone
        stdout=2,  # stdout is for the result of a verb
        pass_fds=[listener.fileno()],
        # NumPy's and PyTorch's threads must not start before a fork.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the driver
    )


def prestart_fork_server(address: str | None) -> None:
    """Start the fork server for the local Ray that a job will start: it imports while the job does.

    Args:
        address: the Ray cluster of the job; with one, or RAY_ADDRESS, there will be no local Ray.
    """
    ray = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    if not (address or os.environ.get("RAY_ADDRESS") or connected or _prestarted):
        with contextlib.suppress(_UnsupportedError):
            _prestarted.append(ForkServerProcess())


@contextmanager
def fork_server() -> Iterator[Path | None]:
    """Run a fork server that has imported PRELOADED, and yield the script by which nodes of Ray start forked workers.

    The nodes must be started inside the context. Without support for it, as on macOS, None. A worker that cannot be
    forked starts as by Ray's own script.
    """
    try:
        server = _prestarted.pop() if _prestarted else ForkServerProcess()
    except _UnsupportedError:
        yield None
        return
    os.environ[ADDRESS] = server.address
    try:
        yield _WORKER
    finally:
        os.environ.pop(ADDRESS, None)
        server.close()
