"""Ray sessions: connect to a cluster, or start a local Ray that ends with this process."""

import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray

from rayface import machine
from rayface.fork_server.launch import close_prestarted, fork_server
from rayface.interrupts import Terminated
from rayface.plugins import runtime_env
from rayface.ray_internals.nodes import started_nodes
from rayface.ray_internals.tokens import protect_token
from rayface.std_streams import stderr_without, stdout_to_stderr

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
_started_here: list[bool] = []  # for each open session: whether it started a local Ray
# Read by Ray Train's controller at startup; with the default of 2 s it notices finished workers up to 2 s late.
_TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
_LOCAL_ENVIRONMENT = {
    # Ray starts workers at niceness 15; other programs that use all cores would starve them.
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor; a local machine is not preempted
    # Statistics of the node and of tasks, for a dashboard and Ray's own Prometheus metrics: 1 % of a core.
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    "RAY_task_events_report_interval_ms": "0",
}
# Ray's server of metrics listens on all interfaces, and asks for no token.
_WITHOUT_METRICS = {"RAY_enable_metrics_collection": "false"}
_BACKEND_LOG = r"^\[[\d-]+ [\d:,]+ [DIWE] \d+ \d+\] \S+\.cc:\d+: "
# What Ray appends is /ray/session_2026-11-26_12-50-03_191673_1234567/sockets/plasma_store.
_MAX_TEMPORARY = 36


class NoRoomError(ValueError):
    """The cluster has too few resources, and no further node joined in time."""


@contextmanager
def ray_session(
    address: str | None = None,
    *,
    num_cpus: int = 1,
    exact: bool = False,
    debug: bool = False,
    prometheus: bool = False,
) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local Ray and stop it on exit.

    Inside the context, stdout of this process and of a local Ray's processes is redirected to stderr: Ray's processes
    print warnings to the stdout that they inherit, where a reader of --json expects only the result.

    Args:
        address: address of the cluster; None: RAY_ADDRESS, else a local Ray.
        num_cpus: CPUs that the job needs; a local Ray offers at least these, even on a machine with fewer cores.
        exact: ignore RAY_ADDRESS and start a local Ray with exactly num_cpus CPUs; for benchmarks.
        debug: show the logs of Ray and of its workers.
        prometheus: export Ray's metrics from a local Ray, too, to all who can reach this machine.

    Raises:
        ValueError: the cluster does not answer.
    """
    if ray.is_initialized():
        close_prestarted()
        yield
        return
    with stdout_to_stderr(), _connected(address, num_cpus, exact, debug, prometheus):
        yield


@contextmanager
def _connected(address: str | None, num_cpus: int, exact: bool, debug: bool, prometheus: bool) -> Iterator[None]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = None if exact else address or os.environ.get("RAY_ADDRESS")
    on_terminate = signal.getsignal(signal.SIGTERM)
    forks: AbstractContextManager[Mapping[str, str]] = nullcontext({}) if address else fork_server()
    with forks as worker_scripts:
        try:
            if address:
                close_prestarted()
                _require_answer(address)
                _connect(address, debug)
            else:
                cpus = num_cpus if exact else max(machine.num_cpus(), num_cpus)
                metrics = {} if prometheus else _WITHOUT_METRICS
                with environment(with_defaults(_TRAIN_ENVIRONMENT | _LOCAL_ENVIRONMENT | metrics)):
                    _start_local(cpus, worker_scripts, debug)
        except SystemExit as error:  # Ray raises it on SIGTERM during startup
            raise Terminated from error
        except Exception as error:  # Ray raises a bare one where its node does not start in time
            failed = f"cluster.address: {address}: no Ray cluster answers"
            where = failed if address else "no local Ray could be started"
            raise ValueError(f"{where}: {_reason(error)}") from error
        if callable(on_terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray has installed its own handler, which exits with code 15
        _started_here.append(not address)
        try:
            yield
        finally:
            _started_here.pop()
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address that no Ray can have, or where nothing listens: Ray would try for minutes.

    Raises:
        ValueError, OSError: the reason.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(
            "it is that of the job server: run the verb there by `rayface submit VERB ...`, or give HOST:6379 or "
            "ray://HOST:10001"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _connect(address: str, debug: bool) -> None:
    os.environ.update(with_defaults(_TRAIN_ENVIRONMENT))  # Ray Train passes it on to its controller
    level = logging.INFO if debug else logging.ERROR
    with _quiet_backend(debug):
        ray.init(address, logging_level=level, log_to_driver=debug, runtime_env=runtime_env())


def _start_local(num_cpus: int, worker_scripts: Mapping[str, str], debug: bool) -> None:
    logger.info("starting Ray on this machine, with %d CPUs", num_cpus)
    protect_token(create=True)
    with (
        _quiet_backend(debug),
        started_nodes(worker_scripts=worker_scripts, log_monitor=debug, autoscaler=False, api_server=False),
    ):
        ray.init(
            "local",  # None would connect to any Ray that already runs on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.INFO if debug else logging.ERROR,
            log_to_driver=debug,
            runtime_env=runtime_env(),
        )


@contextmanager
def _quiet_backend(debug: bool) -> Iterator[None]:
    """Keep the log of Ray's C++ code, started in the context, off stderr of this process, unless `debug`.

    It writes errors there that Ray recovers from ("core_worker.cc:2465: Actor ... has constructor arguments in the
    object store"); what ends a job reaches the driver as an exception.
    """
    level = "RAY_BACKEND_LOG_LEVEL"
    if debug or level in os.environ:
        yield
        return
    # Ray announces the level itself as it starts, and logs without one until then.
    with environment({level: "fatal"}), stderr_without(rf"{level}|{_BACKEND_LOG}"):
        yield


def started_here() -> bool:
    """Return whether this process started the Ray that it is connected to, a local one."""
    return bool(_started_here) and _started_here[-1]


def with_defaults(values: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables, with the values of those that are set already."""
    return {name: os.environ.get(name, value) for name, value in values.items()}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the context, for the processes of a local Ray to inherit.

    This process does not keep them. Ray Train would pass those of its own on in a runtime environment, and a worker
    with a runtime environment cannot use a prestarted process.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "timed out during startup" in text:
        return f"{text.rstrip('.')}: the machine is busy: run it again, or give --address"
    if "AF_UNIX" not in text:
        return text
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return (
        f"{name}: {os.environ.get(name, tempfile.gettempdir())}: too long: paths of Ray's sockets below it are limited "
        f"to 107 bytes: set {name} to a folder of at most {_MAX_TEMPORARY} characters, such as /tmp"
    )


def is_cluster(address: str | None) -> bool:
    """Return whether `ray_session(address)` connects to a cluster, where nodes may join, or starts a local Ray."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def require_workers(
    device: str,
    cpus: float,
    count: int,
    *,
    wait: float,
    setting: str = "train.num_workers",
) -> None:
    """Wait until `count` workers with `cpus` CPUs and, depending on `device`, a GPU each fit; see `require`.

    A cluster without nodes is asked for CPUs first: only the nodes that join show whether it has GPUs.
    """
    if device != "cuda":
        require({"CPU": cpus}, count, wait=wait, setting=setting)
    if takes_gpu(device):
        require({"CPU": cpus, "GPU": 1.0}, count, wait=wait, setting=setting)
    elif device == "auto" and wait > 0:
        logger.info("train.device: auto: no GPU in the cluster now: using CPUs; train.device=cuda waits for GPU nodes")


def takes_gpu(device: str) -> bool:
    """Return whether a worker takes a GPU under this train.device; call it inside a Ray session."""
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def require(bundle: Mapping[str, float], count: int, *, wait: float, setting: str) -> None:
    """Wait until the cluster has room for `count` workers of one `bundle` each; request nodes from an autoscaler.

    Args:
        bundle: resources of a worker, {"CPU": 1.0, "GPU": 1.0}; it must fit into one node.
        wait: seconds to wait; new nodes take minutes to join.
        setting: config key that sets `count`, named in the error.

    Raises:
        NoRoomError: there is not enough room after that time.
    """
    room = places(bundle)
    if room < count and wait > 0:
        room = _wait_for_room(bundle, count, wait)
    if room < count:
        raise NoRoomError(
            f"{setting}: {count}: each needs {_text(bundle)}, the cluster has room for {room}: "
            "use fewer workers, add nodes, or raise train.wait_for_nodes"
        )


def _wait_for_room(bundle: Mapping[str, float], count: int, wait: float) -> int:
    from rayface.ray_internals.autoscaling import NodeRequest  # imports Ray Data

    needs = f"{count} workers of {_text(bundle)} each"
    logger.info("waiting up to %g s for nodes: %s, room for %d", wait, needs, places(bundle))
    request = NodeRequest([dict(bundle)] * count)
    deadline = time.monotonic() + wait
    try:
        while (room := places(bundle)) < count and time.monotonic() < deadline:
            request.send()
            time.sleep(min(_POLL_SECONDS, wait))
    finally:
        request.cancel()
    return room


def _text(bundle: Mapping[str, float]) -> str:
    return " and ".join(f"{value:g} {name}" for name, value in bundle.items())


def places(bundle: Mapping[str, float]) -> int:
    """Return how many workers of one `bundle` each the live nodes hold, regardless of other jobs."""
    return sum(places_on(node["Resources"], bundle) for node in ray.nodes() if node["Alive"])


def places_on(resources: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """Return how many workers of one `bundle` each a node of these resources holds."""
    # Ray counts resources in units of 1e-4, so 0.3 CPUs hold three bundles of 0.1 despite float rounding.
    return math.floor(min(resources.get(name, 0) / value for name, value in bundle.items()) + 1e-6)
