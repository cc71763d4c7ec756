"""Ctrl-C and SIGTERM: the driver asks the workers to stop, they save a checkpoint and leave together."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

REQUEST = "stop"
_IMPORT_POLL_SECONDS = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Ray and schedulers send it; treated as Ctrl-C but for the exit code."""


class TrainingInterruptedError(RuntimeError):
    """A run that was asked to stop and did; the message says how to go on.

    Attributes:
        exit_code: of the command line, 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.exit_code = exit_code_of(cause)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of the command line after an interrupt: 143 for SIGTERM, 130 for Ctrl-C."""
    if isinstance(error, TrainingInterruptedError):
        return error.exit_code
    return 143 if isinstance(error, Terminated) else 130


def interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is, or is of: one that hits an extension module comes as a SystemError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and KeyboardInterrupt on Ctrl-C while inside; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the user has another, or ignores it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        # An exception in the middle of an extension module's initialisation aborts the process.
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


def run_interruptibly(function: Callable[[], None], run: Path, grace: float, *, finished: Callable[[], bool]) -> None:
    """Call `function` in a thread; when interrupted, put the request into the run directory and wait for it to end.

    Ray Train would answer Ctrl-C in the main thread with an exit of its own that loses the step.

    Args:
        grace: seconds that the workers get to save a checkpoint; a second interrupt does not wait.
        finished: whether all is done: then an interrupt came too late to change anything and is ignored.

    Raises:
        KeyboardInterrupt: it was interrupted.
        BaseException: whatever `function` raised.
    """
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # raised again in the thread that waits
            failures.append(error)
        finally:
            done.set()

    clear(run)
    # Not Thread.join: Python 3.11 takes a thread for dead whose join was interrupted.
    done = threading.Event()
    threading.Thread(target=call, daemon=True, name="rayface-fit").start()
    try:
        while not done.wait(0.5):
            pass
    except KeyboardInterrupt:
        request(run)
        done.wait(grace)
        clear(run)
        if not (done.is_set() and not failures and finished()):
            raise
    if failures:
        raise failures[0]


def request(run: Path) -> None:
    """Ask the workers to save a checkpoint and end."""
    (run / REQUEST).touch()


def requested(run: Path) -> bool:
    """Whether a stop was asked for; to be asked by one rank, which tells the others."""
    return (run / REQUEST).exists()


def clear(run: Path) -> None:
    """Forget a request."""
    (run / REQUEST).unlink(missing_ok=True)
