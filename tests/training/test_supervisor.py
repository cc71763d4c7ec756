"""Which failures of workers are tried again, and what is said of them; Ray Train's own errors, no Ray started."""

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from rayface.data.shards import DataError
from rayface.training.checkpoint import CheckpointError
from rayface.training.recovery import TrainingStoppedError
from rayface.training.restarts import add_restart
from rayface.training.supervisor import cause_of, describe, lasting_cause

LOST = UserExceptionWithTraceback(RuntimeError("gloo\nConnection closed by peer"), "trace")
DEAD = WorkerHealthCheckFailedError("no answer", ActorDiedError())


def test_the_dead_are_named_rather_than_those_that_lost_them():
    assert describe({0: LOST, 2: DEAD}) == "worker 2 died"
    assert describe({0: LOST}) == "worker 0 failed: Connection closed by peer"
    assert lasting_cause({0: LOST, 2: DEAD}) is None


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (TrainingStoppedError("the loss is nan"), "the loss is nan"),
        (CheckpointError("no space\nleft"), "no space left"),
        (DataError("too many"), "too many"),
        (ValueError("head.scale: 0"), "head.scale: 0"),
        (RuntimeError("task failed: DataError: a whole window is damaged"), "a whole window is damaged"),
    ],
)
def test_what_would_come_again_is_said_as_the_worker_said_it(cause, message, tmp_path):
    failures = {0: LOST, 1: UserExceptionWithTraceback(cause, "trace")}
    lasting = lasting_cause(failures)
    assert str(lasting) == message
    said = cause_of(WorkerGroupError("many lines", failures), tmp_path)
    assert (type(said), str(said)) == (type(lasting), message)


def test_a_mistake_in_the_program_is_not_tried_again():
    found = lasting_cause({1: UserExceptionWithTraceback(KeyError("x"), "trace")})
    assert isinstance(found, TrainingStoppedError)
    assert str(found) == "worker 1 failed: 'x' (--debug shows more)"


def test_after_the_last_attempt_the_reason_and_the_attempts_are_said(tmp_path):
    for reason in ("worker 1 died", "worker 0 died", "worker 1 hangs: no progress for 60 s"):
        add_restart(tmp_path, reason)
    said = cause_of(WorkerGroupError("many lines", {0: LOST, 1: DEAD}), tmp_path)
    assert isinstance(said, TrainingStoppedError)
    assert str(said).startswith(
        "worker 1 hangs: no progress for 60 s; workers had been started again 2 times (train.max_failures)"
    )
