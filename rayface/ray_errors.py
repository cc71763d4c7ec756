"""One-line messages for errors raised in Ray tasks and actors: the root cause."""

import re

from ray.exceptions import ActorDiedError, RayError, RayTaskError, UserCodeException

from rayface.credentials import mask
from rayface.storage import DataError, StorageError

_MOST = 1000  # characters
_CHAINED = "\nThe above exception was the direct cause of"  # the first traceback of a chain is the root cause
# Text that Ray Data appends to a message.
_ADVICE = re.compile(r"(\n|\\n)Failed to [^\n]+ attempts \(total backoff .*", re.DOTALL)
_LAST_LINE = re.compile(r"^([\w.]+): (.+)$", re.MULTILINE)  # of a traceback; Ray may put advice below it


def root_cause(error: BaseException) -> BaseException:
    """Return the error that was originally raised, through any number of nested tasks and actors.

    If only the text of its traceback is available, a ValueError becomes a DataError and an unknown type a RuntimeError.
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
    """Return the root cause of an error: its message, preceded by its type unless the message is for the user."""
    cause = root_cause(error)
    # Ray's own messages state the cause in the first line; lines of ids follow.
    said = mask(_ADVICE.sub("", str(cause)))
    lines = [line for line in said.splitlines() if not (isinstance(cause, RayError) and line.startswith("\t"))]
    text = " ".join(" ".join(lines).split())[:_MOST]
    if text and (isinstance(cause, ValueError | RuntimeError) or type(cause).__module__.startswith("ray.")):
        return text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
