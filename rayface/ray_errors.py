"""What the user reads of an error that came through Ray: its cause, in one line."""

import re

from ray.exceptions import ActorDiedError, RayError, RayTaskError, UserCodeException

from rayface.credentials import mask
from rayface.storage import DataError, StorageError

_MOST = 1000  # characters
_CHAINED = "\nThe above exception was the direct cause of"  # the first of a chain of tracebacks is the cause
# What Ray Data appends to a message.
_ADVICE = re.compile(r"(\n|\\n)Failed to [^\n]+ attempts \(total backoff .*", re.DOTALL)
_LAST_LINE = re.compile(r"^([\w.]+): (.+)$", re.MULTILINE)  # of a traceback; Ray may put advice below it


def root_cause(error: BaseException) -> BaseException:
    """Return the error that was raised inside a task or an actor, through however many of them it came.

    Where only the text of its traceback came through, ValueErrors are DataErrors and unknown ones RuntimeErrors.
    """
    text = str(error)
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        text, error = str(error), error.cause
    if type(error) is RayError or isinstance(error, RayTaskError | ActorDiedError | UserCodeException):
        for name, message in _LAST_LINE.findall(text.partition(_CHAINED)[0])[-1:]:
            kind = name.rpartition(".")[2]
            known = {"DataError": DataError, "ValueError": DataError, "StorageError": StorageError}.get(kind)
            return known(message) if known else RuntimeError(f"{kind}: {message}")
    return error


def in_one_line(error: BaseException) -> str:
    """Return the cause of an error: its message, after its type unless the message is written for the user."""
    cause = root_cause(error)
    # Ray's own errors say what happened first; then come lines of ids.
    said = mask(_ADVICE.sub("", str(cause)))
    lines = [line for line in said.splitlines() if not (isinstance(cause, RayError) and line.startswith("\t"))]
    text = " ".join(" ".join(lines).split())[:_MOST]
    if text and (isinstance(cause, ValueError | RuntimeError) or type(cause).__module__.startswith("ray.")):
        return text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
