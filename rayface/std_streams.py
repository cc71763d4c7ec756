"""stdout and stderr of this process as file descriptors, which covers C++ code and the processes that it starts."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stderr_without(pattern: str) -> Iterator[None]:
    """Write what this process and its C++ code write to stderr inside the context after it, but no line like `pattern`.

    Args:
        pattern: regular expression, searched in each line.
    """
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:  # no pipe: processes that were started inside may keep it
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            written = os.pread(held.fileno(), os.fstat(held.fileno()).st_size, 0)
            shown = [line for line in written.splitlines(keepends=True) if not re.search(pattern.encode(), line)]
            os.write(2, b"".join(shown))


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout's file descriptor, which covers child processes and C++; no effect if stdout is closed."""
    try:
        saved = os.dup(1)
    except OSError:
        yield
        return
    try:
        _point_stdout_at(2)
        yield
    finally:
        _point_stdout_at(saved)
        os.close(saved)


def _point_stdout_at(descriptor: int) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stdout is missing or closed
        sys.stdout.flush()  # earlier output still goes to the old descriptor
    with contextlib.suppress(OSError):
        os.dup2(descriptor, 1)
