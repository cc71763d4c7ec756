"""Errors that come through Ray are shown by their root cause; no Ray is started."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, UserCodeException

from rayface.ray_errors import in_one_line, root_cause
from rayface.storage import DataError

ADVICE = (
    "\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s)."
    "\nTo change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext`."
)
CHAINED = """ray::MapBatches(call)() (pid=1, ip=10.0.0.1)
  File "job.py", line 24, in call
    raise DataError("in a task")
rayface.storage.DataError: in a task

The above exception was the direct cause of the following exception:

ray::MapBatches(call)() (pid=1, ip=10.0.0.1)
ray.exceptions.UserCodeException: UDF failed to process a data block."""
CREATION = """The actor died because of an error raised in its creation task, ray::Caller.__init__() (pid=1)
  File "job.py", line 27, in __init__
    raise KeyError("weights")
KeyError: 'weights'"""


def task_error(cause: BaseException, text: str = "ray::task() (pid=1)\n  File 'job.py'\nlast line") -> RayTaskError:
    return RayTaskError("task", text, cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (task_error(DataError("s3://b/a.tar: bad" + ADVICE)), DataError, "s3://b/a.tar: bad"),
        (task_error(task_error(DataError("two\ntasks deep"))), DataError, "two tasks deep"),
        (task_error(KeyError("weights" + ADVICE)), KeyError, "KeyError: 'weights"),
        (task_error(OSError(28, "No space left")), OSError, "OSError: [Errno 28] No space left"),
        (task_error(UserCodeException("UDF failed" + ADVICE), CHAINED + ADVICE), DataError, "in a task"),
        (ActorDiedError(RayTaskError("a", CREATION, KeyError("weights"))), RuntimeError, "KeyError: 'weights'"),
        (
            OutOfMemoryError("The node ran out of memory.\nadvice"),
            OutOfMemoryError,
            "The node ran out of memory. advice",
        ),
        (ActorDiedError(), ActorDiedError, "The actor died unexpectedly before finishing this task."),
        (MemoryError(), MemoryError, "MemoryError"),
    ],
)
def test_root_cause_of_a_wrapped_ray_error_is_one_line_without_advice(error, kind, line):
    assert isinstance(root_cause(error), kind)
    assert in_one_line(error) == line
