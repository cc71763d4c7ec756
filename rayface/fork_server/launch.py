"""The driver's side: start the fork server, and tell nodes of Ray to fork their workers from it."""

import atexit
import contextlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rayface.fork_server import ADDRESS, OWN_MODULES

LIBRARIES = (
    "pandas",
    "pyarrow.fs",
    "pyarrow.json",
    "pyarrow.parquet",
    "pydantic.v1.fields",
    "starlette.datastructures",
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "scipy.sparse.csgraph",
    "numba",
    "cv2",
)
"""What workers of a training import, of other packages and without Ray."""
TRACKING = ("rayface.fork_server.with_mlflow",)
"""What drivers import besides; worth it where a server serves several of them."""
_SERVER = Path(__file__).with_name("server.py")
WORKER_SCRIPTS = {
    "worker_path": str(Path(__file__).with_name("worker.py")),
    "setup_worker_path": str(Path(__file__).with_name("setup_worker.py")),
}
"""By which nodes of Ray start forked workers, by the names of Ray's parameters."""
_CALL = Path(__file__).with_name("call.py")
_CALL_SECONDS = 60
_MOST_WAITING = 1024  # clients, while the server imports
T = TypeVar("T")
_prestarted: list["ForkServerProcess"] = []


class UnsupportedError(Exception):
    """This machine cannot have a fork server."""


class ForkServerProcess:
    """A process that imports modules and is forked on request, see rayface.fork_server.server."""

    def __init__(self, modules: Sequence[str] = (*LIBRARIES, *OWN_MODULES)) -> None:
        _require_support()
        with contextlib.ExitStack() as failed:
            try:
                folder = tempfile.mkdtemp(prefix="rayface-")  # other users cannot enter it
                failed.callback(shutil.rmtree, folder, ignore_errors=True)
                self.address = str(Path(folder) / "forks")
                """Path of its socket."""
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(self.address)  # fails where TMPDIR is too long
                    listener.listen(_MOST_WAITING)
                    self._process = _start(listener, modules)
            except OSError as error:
                raise UnsupportedError from error
            self._remove = failed.pop_all()
        atexit.register(self.close)

    def follow(self, process: int) -> None:
        """Have the process end with another one in place of this one."""
        assert self._process.stdin is not None
        atexit.unregister(self.close)
        try:
            self._process.stdin.write(b"%d" % process)
            self._process.stdin.close()
        except OSError:  # it has ended; workers start without it
            self.close()

    def close(self) -> None:
        """End the process; those that it has forked go on."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.communicate()
        self._remove.close()


def _require_support() -> None:
    if sys.platform != "linux":
        raise UnsupportedError
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:  # a Python that was built without it, a kernel before 5.3, a sandbox
        raise UnsupportedError from error


def _start(listener: socket.socket, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(_SERVER), str(listener.fileno()), ",".join(modules)],
        stdin=subprocess.PIPE,  # its end tells the server that this process is gone
        stdout=2,  # stdout is for the result of a verb
        pass_fds=[listener.fileno()],
        # NumPy's and PyTorch's threads must not start before a fork.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the driver
    )


def prestart_fork_server() -> None:
    """Start the fork server for the local Ray that this process will start: it imports while this one does.

    `close_prestarted` ends it where there is no local Ray after all.
    """
    if not _prestarted and not _is_running():
        with contextlib.suppress(UnsupportedError):
            _prestarted.append(ForkServerProcess())


def close_prestarted() -> None:
    """End the prestarted fork server, if no `fork_server` has taken it."""
    while _prestarted:
        _prestarted.pop().close()


def _is_running() -> bool:
    """Return whether RAYFACE_FORK_SERVER names a server that forks for processes with this environment."""
    with contextlib.suppress(KeyError, OSError, EOFError, pickle.PickleError):
        _call_forked(os.environ[ADDRESS], os.getpid, (), {})
        return True
    return False


@contextmanager
def fork_server(modules: Sequence[str] = (*LIBRARIES, *OWN_MODULES)) -> Iterator[Mapping[str, str]]:
    """Run a fork server, and yield the scripts by which nodes of Ray start forked workers.

    The nodes must be started inside the context. Without support for it, as on macOS, there are none. A worker that
    cannot be forked starts as by Ray's own script. A server that runs already, by RAYFACE_FORK_SERVER, is used.
    """
    if not _prestarted and _is_running():
        yield WORKER_SCRIPTS
        return
    try:
        server = _prestarted.pop() if _prestarted else ForkServerProcess(modules)
    except UnsupportedError:
        yield {}
        return
    os.environ[ADDRESS] = server.address
    try:
        yield WORKER_SCRIPTS
    finally:
        os.environ.pop(ADDRESS, None)
        server.close()


def call(function: Callable[..., T], *arguments: object, **options: object) -> T:
    """Call a function in a fork of the fork server, if it runs; else, or if that fails, here.

    Args:
        function: it, the arguments and the result can be pickled.

    Raises:
        Exception: what the function raises.
    """
    # Of pickle, what cannot be found or pickled is an AttributeError, ImportError or TypeError.
    with contextlib.suppress(KeyError, OSError, EOFError, pickle.PickleError, AttributeError, ImportError, TypeError):
        return _call_forked(os.environ[ADDRESS], function, arguments, options)
    return function(*arguments, **options)


def _call_forked(address: str, *called: object) -> Any:
    # Not above: it imports `resource`, which Windows does not have.
    from rayface.fork_server.protocol import send_request, wait_exit_status

    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        pickle.dump(called, asked)
        asked.seek(0)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            send_request(connection, str(_CALL), streams=(asked.fileno(), answered.fileno(), 2))
            wait_exit_status(connection, _CALL_SECONDS)
        answered.seek(0)
        return pickle.load(answered)
