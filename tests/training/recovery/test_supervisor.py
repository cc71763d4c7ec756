"""Which failures of workers are tried again, and what is said of them; Ray Train's own errors, no Ray started."""

import errno
import types
from contextlib import nullcontext

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfDiskError, WorkerCrashedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import ControllerError
from ray.train.v2.api.preemption import PreemptionInfo
from torch._inductor.exc import InductorError

from rayface.config import TrainConfig
from rayface.storage import DataError, StorageError
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.recovery import supervisor
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.recovery.supervisor import Supervisor, cause_of, describe, lasting_cause
from rayface.training.run_directory import RunDirectory

LOST = UserExceptionWithTraceback(RuntimeError("gloo\nConnection closed by peer"), "trace")
DEAD = WorkerHealthCheckFailedError("no answer", ActorDiedError())


def from_a_full_disk(link: str) -> RuntimeError:
    """As a library that hides what the system said, which only the chain of causes knows."""
    error = RuntimeError("PytorchStreamWriter failed writing file")
    setattr(error, link, OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a/journal/rank0.jsonl"))
    return error


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a/faults.log"), "/runs/a/faults.log: No space left"),
        (OSError(errno.EROFS, "Read-only file system"), "a disk: Read-only file system"),
        (from_a_full_disk("__cause__"), "rank0.jsonl: Disk quota exceeded"),
        (from_a_full_disk("__context__"), "rank0.jsonl: Disk quota exceeded"),
        (RuntimeError("Error: I/O error: No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("database or disk is full"), "database or disk is full"),
        (OutOfDiskError("Local disk is full"), "disk"),
    ],
)
def test_full_disk_anywhere_in_a_worker_stops_the_run(cause, message):
    lasting = lasting_cause({0: LOST, 1: UserExceptionWithTraceback(cause, "trace")})
    assert isinstance(lasting, TrainingStoppedError)
    assert message in str(lasting)
    assert "free space there, then resume the run" in str(lasting)
    assert lasting_cause({0: UserExceptionWithTraceback(OSError(errno.EIO, "Input/output error"), "trace")}) is None


NCCL_FULL = """NCCL error in: NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for details)
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'"""


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (
            torch.OutOfMemoryError,
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
            "CUDA out of memory. Tried to allocate 2.00 GiB: a step must fit into a GPU's memory: set ",
        ),
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate more than 1EB", "CUDA out of memory: a step "),
        (
            torch.OutOfMemoryError,
            "Allocation on device 0 would exceed allowed memory. (out of memory)",
            "Allocation on device 0 would exceed allowed memory: a step ",
        ),
        (
            torch.AcceleratorError,
            "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
            "CUDA error: out of memory: a step must fit into a GPU's memory, page-locked buffers (checkpoints, "
            "head.host_memory) into the host's: set ",
        ),
        (RuntimeError, "HIP error: out of memory", "HIP error: out of memory: a step must fit into a GPU's memory, "),
        (RuntimeError, "CUDA driver error: out of memory", "CUDA driver error: out of memory: a step "),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when `c`", "CUBLAS_STATUS_ALLOC_FAILED: a step "),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED: a step "),
        (RuntimeError, "Triton Error [CUDA]: out of memory", "Triton Error [CUDA]: out of memory: a step "),
        (torch.distributed.DistBackendError, NCCL_FULL, "Cuda failure 2 'out of memory': a step "),
    ],
)
def test_step_that_does_not_fit_into_a_gpu_stops_the_run(kind, text, said):
    lasting = lasting_cause({0: LOST, 1: UserExceptionWithTraceback(kind(text), "trace")})
    assert isinstance(lasting, TrainingStoppedError)
    assert str(lasting).startswith(f"worker 1: {said}")
    assert str(lasting).endswith("train.max_batch_per_worker or backbone.checkpointing=true, then resume the run")


@pytest.mark.parametrize("text", ["CUDA error: illegal memory access", "CUDNN_STATUS_EXECUTION_FAILED", "Cuda failure"])
def test_other_failure_of_a_gpu_restarts_the_workers(text):
    assert lasting_cause({0: UserExceptionWithTraceback(torch.AcceleratorError(text), "trace")}) is None


def test_backbone_that_does_not_compile_stops_the_run():
    error = InductorError(RuntimeError("no valid Triton config\nadvice"), None)
    lasting = lasting_cause({0: LOST, 1: UserExceptionWithTraceback(error, "trace")})
    assert isinstance(lasting, TrainingStoppedError)
    assert str(lasting).startswith(
        "worker 1: backbone.compile: RuntimeError: no valid Triton config: leave it out, then "
    )
    full = InductorError(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), None)
    assert "set train.max_batch_per_worker" in str(lasting_cause({0: full}))


def test_describe_of_a_dead_worker_names_it_before_those_that_lost_it():
    assert describe({0: LOST, 2: DEAD}) == "worker 2 died"
    assert describe({0: LOST}) == "worker 0 failed: gloo Connection closed by peer"
    assert lasting_cause({0: LOST, 2: DEAD}) is None
    assert lasting_cause({0: UserExceptionWithTraceback(WorkerCrashedError(), "trace")}) is None
    assert lasting_cause({0: UserExceptionWithTraceback(ValueError("x"), "trace"), 1: DEAD}) is None


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (TrainingStoppedError("the loss is nan"), "the loss is nan"),
        (CheckpointError("no space\nleft"), "no space left"),
        (DataError("too many"), "too many"),
        (ValueError("head.scale: 0"), "head.scale: 0"),
        (RuntimeError("task failed: DataError: a whole window is damaged"), "a whole window is damaged"),
        (StorageError("a.tar: cannot be read after 7 tries"), "a.tar: cannot be read after 7 tries"),
        (RuntimeError("task failed: rayface.storage.StorageError: a.tar: EIO\n"), "a.tar: EIO"),
    ],
)
def test_cause_of_a_lasting_error_is_the_workers_own_message(cause, message, tmp_path):
    failures = {0: LOST, 1: UserExceptionWithTraceback(cause, "trace")}
    lasting = lasting_cause(failures)
    assert (str(lasting), type(lasting).__name__ in repr(cause)) == (message, True)
    said = cause_of(WorkerGroupError("many lines", failures), RunDirectory(tmp_path))
    assert (type(said), str(said)) == (type(lasting), message)


def test_supervisor_of_a_lasting_error_raises_it_and_records_no_restart(tmp_path):
    run = RunDirectory(tmp_path)
    failed = WorkerGroupPollStatus({0: WorkerStatus(running=False, error=DataError("too many"))})
    with pytest.raises(DataError, match=r"^too many$"):
        Supervisor(run, TrainConfig(num_workers=2)).after_worker_group_poll_status(failed)
    assert run.restarts() == []


def test_cause_of_the_controller_or_of_a_first_failure_is_said_without_attempts(tmp_path):
    run, reason = RunDirectory(tmp_path), "worker 0 failed: gloo Connection closed by peer"
    said = f"{reason} (cluster.debug=true shows more)"
    known = TrainingStoppedError("workers cannot be started")
    assert cause_of(ControllerError(known), run) is known
    assert str(cause_of(ControllerError(KeyError("x")), run)).startswith("Ray Train stopped: KeyError: 'x' (")
    assert str(cause_of(WorkerGroupError("many lines", {0: LOST}), run)) == said
    run.add_restart(reason)
    assert str(cause_of(WorkerGroupError("many lines", {0: LOST}), run)) == said


def test_lasting_cause_of_a_program_error_stops_the_run():
    found = lasting_cause({0: LOST, 1: UserExceptionWithTraceback(KeyError("x"), "trace")})
    assert type(lasting_cause({1: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")})) is ValueError
    assert isinstance(found, TrainingStoppedError)
    assert str(found) == "worker 1 failed: KeyError: 'x' (cluster.debug=true shows more)"


def test_supervisor_without_nodes_for_too_long_stops_the_run(tmp_path, monkeypatch):
    now, slept = [0.0], []
    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append)
    monkeypatch.setattr(supervisor, "time", clock)
    watching = Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=[2, 4], wait_for_nodes=100))
    lost = WorkerGroupError("many lines", {0: LOST, 1: DEAD})
    restarting, scheduling = RestartingState(training_failed_error=lost), SchedulingState(None)
    for now[0], before, after in [
        (0, InitializingState(), RunningState()),
        (500, RunningState(), restarting),
        (605, restarting, scheduling),
        (610, scheduling, RunningState()),  # a group that takes long to start is no missing node
        (900, RunningState(), restarting),
        (999, restarting, restarting),
    ]:
        watching.after_controller_state_update(before, after)
    now[0] = 1001
    with pytest.raises(TrainingStoppedError, match=r"^train.num_workers: 2: .* for 101 s .*, then resume the run$"):
        watching.after_controller_state_update(restarting, restarting)
    assert slept == [0.2] * 2  # where nothing changed
    hasty = Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=[2, 4], wait_for_nodes=0))
    for now[0] in (2000, 2019):  # a start may count on a lost node for 20 s
        hasty.after_controller_state_update(scheduling, restarting)
    now[0] = 2021
    with pytest.raises(TrainingStoppedError, match=r"for 21 s"):
        hasty.after_controller_state_update(scheduling, restarting)


@pytest.mark.parametrize(
    ("failure", "stops"),
    [(WorkerGroupStartupFailedError("no such\nfile"), True), (WorkerGroupStartupTimeoutError(2), False)],
)
def test_supervisor_of_workers_that_fail_to_start_stops_the_run(tmp_path, monkeypatch, failure, stops):
    monkeypatch.setattr(supervisor, "_POLL_SECONDS", 0)
    watching = Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=2))
    failed = ReschedulingState(training_failed_error=ControllerError(failure))
    for _ in range(10):
        watching.after_controller_state_update(SchedulingState(None), failed)
        watching.after_controller_state_update(failed, failed)  # still the same failure
    with (
        pytest.raises(TrainingStoppedError, match=r"^workers cannot be started: no such file")
        if stops
        else nullcontext()
    ):
        watching.after_controller_state_update(SchedulingState(None), failed)


def test_supervisor_of_a_preempted_node_drains_the_workers_once(tmp_path):
    notice = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [1]})
    group = [
        WorkerGroupPollStatus(
            {rank: WorkerStatus(running=True, error=error, preemption_info=notice) for rank in (0, 1)}
        )
        for error in (None, LOST)
    ]
    watching = Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=2))
    watching.after_worker_group_training_start(None)
    for _ in range(2):
        watching.after_worker_group_poll_status(group[0])
    assert RunDirectory(tmp_path).drain_requested()
    assert not RunDirectory(tmp_path).stop_requested(), "a leave is no request of a user's"
    assert RunDirectory(tmp_path).restarts() == ["a node is about to be preempted"]
    RunDirectory(tmp_path).request_stop()
    for _ in range(3):  # Ray Train asks on until all workers have ended
        watching.after_worker_group_poll_status(group[1])
    assert RunDirectory(tmp_path).stop_requested(), "what a user asked for was forgotten"
    assert RunDirectory(tmp_path).restarts()[1:] == ["worker 0 failed: gloo Connection closed by peer"]
    assert not RunDirectory(tmp_path).drain_requested()  # Ray Train starts them again
    watching.after_worker_group_training_start(None)
    watching.after_worker_group_poll_status(group[1])
    assert len(RunDirectory(tmp_path).restarts()) == 3


def test_supervisor_of_a_recorded_hang_gives_it_as_the_reason_of_the_restart(tmp_path):
    run = RunDirectory(tmp_path)
    watching = Supervisor(run, TrainConfig(num_workers=(1, 2), grace_seconds=0))
    failed = WorkerGroupPollStatus({0: WorkerStatus(running=False, error=LOST)})
    run.record_hang("worker 1 hangs")
    for reason in ("worker 1 hangs", "worker 0 failed: gloo Connection closed by peer"):
        watching.after_worker_group_training_start(None)
        watching.after_worker_group_poll_status(failed)
        watching.before_controller_execute_resize_decision(types.SimpleNamespace(num_workers=1))  # nothing trains
        assert run.restarts()[-1] == reason


def test_supervisor_of_workers_that_start_clears_the_drain_of_earlier_ones(tmp_path):
    run = RunDirectory(tmp_path)
    run.request_drain()
    Supervisor(run, TrainConfig(num_workers=2)).after_worker_group_training_start(None)
    assert not run.drain_requested()


@pytest.mark.parametrize(("ends", "seconds"), [("saved", 1), ("finished", 1), ("never", 10)])
def test_supervisor_before_a_resize_stops_the_workers_and_waits_for_their_checkpoint(
    tmp_path, monkeypatch, ends, seconds
):
    run, now, asked = RunDirectory(tmp_path), [0.0], []

    def sleep(some: float) -> None:
        now[0] += some
        asked.append(run.stop_requested())
        if now[0] >= 1 and ends == "saved":
            run.clear_stop_request()
        if now[0] >= 1 and ends == "finished":
            run.write_outcome({})

    monkeypatch.setattr(supervisor, "time", types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    watching = Supervisor(run, TrainConfig(num_workers=[2, 4], grace_seconds=10))
    decision = types.SimpleNamespace(num_workers=4)
    watching.before_controller_execute_resize_decision(decision)  # nothing trains
    assert (asked, run.restarts()) == ([], [])
    watching.after_worker_group_training_start(None)
    for _ in range(2):  # the second time nothing trains any more
        watching.before_controller_execute_resize_decision(decision)
    assert all(asked)
    assert now[0] == pytest.approx(seconds, abs=0.3)
    assert not run.stop_requested()
    assert run.restarts() == ["the cluster has room for 4 workers"]


@pytest.fixture
def changed(monkeypatch) -> list[str]:
    """The changes to a controller's process, which are not made in this one."""
    names: list[str] = []
    for name in ("without_synchronization", "end_without_exit_handlers"):
        monkeypatch.setattr(supervisor, name, lambda name=name: names.append(name))
    return names


@pytest.mark.parametrize(("num_workers", "seconds"), [((2, 2), None), ((2, 4), "20.0")])
def test_controller_ends_without_exit_handlers_and_counts_on_lost_nodes_only_if_elastic(
    tmp_path, changed, monkeypatch, num_workers, seconds
):
    variables = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "HOME": "/"}
    monkeypatch.setattr(supervisor, "os", types.SimpleNamespace(environ=variables))
    start = types.SimpleNamespace(run_config=types.SimpleNamespace(name="abc"))
    Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=num_workers)).after_controller_start(start)
    assert changed == ["without_synchronization", "end_without_exit_handlers"]
    assert variables == {"HOME": "/"} | ({"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": seconds} if seconds else {})


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("mirrored", [True, False])
def test_supervisor_of_a_mirrored_run_starts_stores_on_the_nodes_of_every_group(tmp_path, monkeypatch, mirrored):
    started = []
    monkeypatch.setattr(supervisor, "start_stores", lambda run, nodes: started.append((run, nodes)) or nodes)
    watching = Supervisor(RunDirectory(tmp_path), TrainConfig(num_workers=2), mirrored=mirrored)
    config = types.SimpleNamespace(name="abc")
    watching.after_controller_start(types.SimpleNamespace(run_config=config))
    for nodes in (["a", "b"], ["a", "a"]):
        workers = [types.SimpleNamespace(metadata=types.SimpleNamespace(node_id=node)) for node in nodes]
        watching.after_worker_group_training_start(types.SimpleNamespace(get_workers=lambda found=workers: found))
    assert started == ([("abc", ["a", "b"]), ("abc", ["a", "a"])] if mirrored else [])
    assert watching._stores == ["a", "b", "a", "a"] * mirrored  # without their handles they would end


def test_cause_of_the_last_attempt_names_reason_and_attempts(tmp_path):
    run = RunDirectory(tmp_path)
    watching = Supervisor(run, TrainConfig(num_workers=(1, 2), grace_seconds=0))
    for reason in ("worker 1 died", "worker 0 died", "worker 1 hangs: no progress for 60 s"):
        run.add_restart(reason)
        watching._training = True  # drains and growth are no failures
        watching.before_controller_execute_resize_decision(types.SimpleNamespace(num_workers=2))
        watching._drain()
    assert len(run.restarts()) == 9
    said = cause_of(WorkerGroupError("many lines", {0: LOST, 1: DEAD}), RunDirectory(tmp_path))
    assert isinstance(said, TrainingStoppedError)
    assert str(said).startswith(
        "worker 1 hangs: no progress for 60 s; workers had been restarted 2 times (train.max_failures)"
    )
