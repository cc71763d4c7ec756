"""Ctrl-C and SIGTERM as exceptions in the main thread of any verb."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_IMPORT_POLL_SECONDS = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by Ray and schedulers; handled like Ctrl-C, with another exit code."""


def interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is or wraps: inside an extension module it becomes a SystemError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and KeyboardInterrupt on Ctrl-C inside the context; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller handles or ignores SIGINT
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        # An exception during the initialisation of an extension module aborts the process: try again later.
        again = threading.Timer(_IMPORT_POLL_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
