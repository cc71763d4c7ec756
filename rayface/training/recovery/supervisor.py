"""Supervision of workers: a permanent error stops the run, any other failure restarts the workers."""

import errno
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import OutOfDiskError, RayActorError, RayError

from rayface.config import TrainConfig
from rayface.machine import end_without_exit_handlers
from rayface.ray_errors import in_one_line, root_cause
from rayface.ray_internals.train import (
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    ControllerCallback,
    InitializingState,
    ReschedulingState,
    RestartingState,
    SchedulingState,
    WorkerGroupCallback,
    WorkerGroupStartupTimeoutError,
    without_synchronization,
)
from rayface.storage import DataError, StorageError
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.mirror_actors import start_stores
from rayface.training.recovery.rollback import NodesLostError, TrainingStoppedError
from rayface.training.run_directory import RunDirectory

_KNOWN = (TrainingStoppedError, CheckpointError, StorageError, DataError, ValueError)
# Transient failures of machines, networks and other workers; any other error would recur in the next attempt.
_PASSING = (RayError, RuntimeError, OSError)
_WITHOUT_WORKERS = (InitializingState, ReschedulingState, RestartingState, SchedulingState)
_TRAIN_VARIABLES = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Libraries that write files (PyTorch, safetensors, SQLite, Arrow) report a full disk only as text.
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full", re.IGNORECASE)
# A full GPU, by its text, since the controller does not import PyTorch: texts of PyTorch's allocators, of CUDA, Triton
# and NCCL ("Cuda failure 2 'out of memory'"), of cuBLAS and cuDNN.
_GPU_FULL = re.compile(
    r"(?:Triton Error \[)?(?:CUDA|HIP)\b[\w :\]']{0,20}out of memory'?(?:\. Tried to allocate [\d.]+ \w+)?"
    r"|Allocation on device \d+ would exceed allowed memory|CU(?:BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED",
    re.IGNORECASE,
)
_FAILED_STARTS = 10  # maximum number per run, for example because a node is lost during a start
_POLL_SECONDS = 0.2
# Reasons of restarts that are no failures.
_PREEMPTED, _ROOM = "a node is about to be preempted", "the cluster has room for"
# A decision for the same number of workers may count on a lost node: Ray Train checks the nodes every 20 s, and would
# wait for the lost one for 60 s.
_ELASTIC_START_SECONDS = 20.0


class Supervisor(WorkerGroupCallback, ControllerCallback):
    """Callback of Ray Train's controller: record why workers restart, and stop a run that would fail again.

    Args:
        run: the run directory.
        train: grace_seconds: for workers to save a checkpoint before their number changes; wait_for_nodes: for a
            cluster that has lost nodes to have room again; num_workers.
        mirrored: start a store for mirrored states on every node that has workers.
    """

    def __init__(self, run: RunDirectory, train: TrainConfig, *, mirrored: bool = False) -> None:
        self._run, self._train, self._mirrored = run, train, mirrored
        self._training = self._failed = False
        self._without_since: float | None = None
        self._failed_starts = 0
        self._run_name = ""
        self._stores: list[Any] = []  # of mirrored states; without their handles they would end

    def after_controller_start(self, train_run_context: Any) -> None:
        without_synchronization()
        # Ray's waits for itself forever if something that it would publish is left then: Publisher::~Publisher posts to
        # the event loop that is being destroyed (2.60; one run in twenty). The process would stay, 450 MB.
        end_without_exit_handlers()
        self._run_name = train_run_context.run_config.name
        for name in _TRAIN_VARIABLES:
            # The controller has read it. Ray Train would pass it on in a runtime environment of the workers, which
            # start later with one: no prestarted process has it.
            os.environ.pop(name, None)
        if self._train.min_workers < self._train.max_workers:
            os.environ.setdefault(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, str(_ELASTIC_START_SECONDS))

    def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
        """Stop a run whose nodes do not come back; Ray Train waits forever for the minimum number of workers."""
        if not isinstance(current_state, _WITHOUT_WORKERS):
            self._without_since = None
            return
        if isinstance(current_state, ReschedulingState) and isinstance(previous_state, SchedulingState):
            self._count_failed_start(current_state.training_failed_error)
        if self._without_since is None:
            self._without_since = time.monotonic()
        elif type(previous_state) is type(current_state):
            time.sleep(_POLL_SECONDS)  # Ray Train polls without a pause
        without = time.monotonic() - self._without_since
        limit = max(self._train.wait_for_nodes, _ELASTIC_START_SECONDS)
        if without > limit and not isinstance(current_state, SchedulingState):
            raise NodesLostError(
                f"train.num_workers: {self._train.min_workers}: the cluster has had room for fewer for {without:.0f} s "
                "(train.wait_for_nodes): add nodes, then resume the run"
            )

    def _count_failed_start(self, error: Exception) -> None:
        failure = getattr(error, "controller_failure", None)
        if isinstance(failure, WorkerGroupStartupTimeoutError):  # there is no room yet
            return
        self._failed_starts += 1
        if self._failed_starts > _FAILED_STARTS:
            cause = in_one_line(failure or error)
            raise TrainingStoppedError(f"workers cannot be started: {cause} (cluster.debug=true shows more)")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._training, self._failed = True, False
        self._run.clear_drain_request()  # left by workers whose node was lost before they ended
        if self._mirrored:
            nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]
            self._stores += start_stores(self._run_name, nodes)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        failures = worker_group_status.errors
        if not failures:
            if self._training and worker_group_status.get_preemption_info() is not None:
                self._drain()
            return
        if self._failed:
            return  # Ray Train polls until all workers of a lost node have ended
        self._training, self._failed = False, True
        self._run.clear_drain_request()  # too late: Ray Train restarts them
        cause = lasting_cause(failures)
        if cause is not None:
            raise cause  # Ray Train does not retry after an error of the controller
        self._run.add_restart(self._run.take_hang() or describe(failures))

    def _drain(self) -> None:
        """Drain the workers, because a node is about to be preempted; the driver restarts them.

        Ray Train would let them train until the node is gone.
        """
        self._training = False
        self._run.request_drain()
        self._run.add_restart(_PREEMPTED)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Let healthy workers save a checkpoint before they are replaced, so that no step is repeated."""
        if not self._training:
            return
        self._training = False
        self._run.request_stop()
        deadline = time.monotonic() + self._train.grace_seconds
        while self._run.stop_requested() and not self._run.has_outcome() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._run.clear_stop_request()
        self._run.add_restart(f"{_ROOM} {resize_decision.num_workers} workers")


def cause_of(error: Exception, run: RunDirectory) -> Exception:
    """Return the error to show for an error of Ray Train: that of a worker if it is the cause."""
    inner = getattr(error, "controller_failure", None)
    if isinstance(inner, _KNOWN):
        return inner
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    cause = lasting_cause(failures)
    if isinstance(cause, _KNOWN):
        return cause
    if failures:
        failed = [reason for reason in run.restarts() if not reason.startswith((_PREEMPTED, _ROOM))]
        *before, last = failed or [describe(failures)]
        again = f"; workers had been restarted {len(before)} times (train.max_failures)" if before else ""
        return TrainingStoppedError(f"{last}{again} (cluster.debug=true shows more)")
    return TrainingStoppedError(f"Ray Train stopped: {in_one_line(inner or error)} (cluster.debug=true shows more)")


def lasting_cause(failures: Mapping[int, BaseException]) -> Exception | None:
    """Return the workers' error that would recur in another attempt, in one line; None: restart them."""
    causes = _causes(failures)
    if any(isinstance(cause, RayActorError) for cause in causes.values()):
        return None  # other workers fail because they lost their connection to it
    for rank, cause in causes.items():
        if full := _full_disk(cause):
            return TrainingStoppedError(f"worker {rank}: {full}: free space there, then resume the run")
        if lacking := _GPU_FULL.search(str(cause)):
            # CUDA says the same of host memory that cannot be page-locked.
            locked = ", page-locked buffers (checkpoints, head.host_memory) into the host's" * ("error:" in lacking[0])
            return TrainingStoppedError(
                f"worker {rank}: {lacking[0]}: a step must fit into a GPU's memory{locked}: set "
                "train.max_batch_per_worker or backbone.checkpointing=true, then resume the run"
            )
        if any(kind.__module__ == "torch._dynamo.exc" for kind in type(cause).__mro__):  # RuntimeErrors, too
            said = in_one_line(RuntimeError(str(cause).partition("\n")[0]))  # advice follows
            return TrainingStoppedError(f"worker {rank}: backbone.compile: {said}: leave it out, then resume the run")
        for known in _KNOWN:
            if isinstance(cause, known):
                return known(in_one_line(cause))
        if found := re.search(
            r"(DataError|StorageError): (.+)", str(cause)
        ):  # raised in a read task, which Ray wraps in text
            return (DataError if found[1] == "DataError" else StorageError)(found[2])
    # The others may only have lost their connection to the failed worker.
    lasting = {rank: cause for rank, cause in causes.items() if not isinstance(cause, _PASSING)}
    return TrainingStoppedError(f"{describe(lasting)} (cluster.debug=true shows more)") if lasting else None


def _full_disk(error: BaseException) -> str:
    """Return the full disk that caused an error, else "": such an error would recur in the next attempt."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            return f"{cause.filename or 'a disk'}: {cause.strerror}"
        if isinstance(cause, OutOfDiskError) or _NO_SPACE.search(str(cause)):
            return in_one_line(cause)
        cause = cause.__cause__ or cause.__context__
    return ""


def describe(failures: Mapping[int, BaseException]) -> str:
    """Describe which worker failed and how, in one line; dead workers before those that lost their connection."""
    causes = _causes(failures)
    dead = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
    if dead:
        return f"worker {' and '.join(map(str, dead))} died"
    rank, cause = next(iter(causes.items()))
    return f"worker {rank} failed: {in_one_line(cause)}"


def _causes(failures: Mapping[int, BaseException]) -> dict[int, BaseException]:
    """Unwrap Ray Train's errors: the error that a worker raised, or why it does not respond."""
    found = {}
    for rank, failure in failures.items():
        inner = getattr(failure, "_base_exc", failure)
        found[rank] = root_cause(getattr(inner, "health_check_failure", inner))
    return found
