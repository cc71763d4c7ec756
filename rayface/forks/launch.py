"""The driver's side: start the process that workers are forked from."""

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

from rayface.forks.protocol import ADDRESS

MODULES = (
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
"""What workers of a training import, but for Ray: its code in C++ keeps the environment that it was imported with."""
_WORKER = Path(__file__).with_name("worker.py")
_begun: list["ForkServer"] = []


class _NoForksError(Exception):
    """This machine cannot have a fork server."""


class ForkServer:
    """A process that imports modules, and is forked."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        if sys.platform != "linux":
            raise _NoForksError
        self._folder = tempfile.mkdtemp(prefix="rayface-")  # which other users cannot enter
        self.address = str(Path(self._folder) / "forks")
        """Of its socket."""
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(self.address)
            except OSError as error:  # TMPDIR is too long for a socket, as Ray will say
                os.rmdir(self._folder)
                raise _NoForksError from error
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rayface.forks.server", str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,  # whose end tells it that this process is gone
                pass_fds=[listener.fileno()],
                # Read by libraries when they are imported; a worker sets its own number of threads.
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the driver
            )
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; those that it has forked go on."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)


def begin(address: str | None) -> None:
    """Start the process for the local Ray that a job will start: it imports while the job does.

    Args:
        address: the Ray cluster of the job; with one, or RAY_ADDRESS, there will be no local Ray.
    """
    ray = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    if not (address or os.environ.get("RAY_ADDRESS") or connected or _begun):
        with contextlib.suppress(_NoForksError):
            _begun.append(ForkServer())


@contextmanager
def fork_server() -> Iterator[Path | None]:
    """Give the script that has workers of Ray forked from a process that has imported MODULES, for nodes to run.

    They must be started inside the context. On Linux; elsewhere None. A worker that cannot be forked starts as by Ray's
    own script.
    """
    try:
        server = _begun.pop() if _begun else ForkServer()
    except _NoForksError:
        yield None
        return
    os.environ[ADDRESS] = server.address
    try:
        yield _WORKER
    finally:
        os.environ.pop(ADDRESS, None)
        server.close()
