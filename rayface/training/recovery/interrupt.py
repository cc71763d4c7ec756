"""Ctrl-C and SIGTERM: the driver requests a stop; the workers save a checkpoint and end together."""

import threading
from collections.abc import Callable

from rayface.interrupts import Terminated
from rayface.training.recovery.rollback import TrainingStoppedError
from rayface.training.run_directory import RunDirectory


class TrainingInterruptedError(RuntimeError):
    """A run stopped on request; the message says how to resume it.

    Attributes:
        exit_code: exit code of the command line, 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.exit_code = exit_code_of(cause)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of the command line after an interrupt: 143 for SIGTERM, 130 for Ctrl-C."""
    if isinstance(error, TrainingInterruptedError):
        return error.exit_code
    return 143 if isinstance(error, Terminated) else 130


def run_interruptibly(
    function: Callable[[], None], run: RunDirectory, grace: float, has_stepped: Callable[[], bool] = lambda: True
) -> None:
    """Call `function` in a thread; on an interrupt, request a stop of the run and wait for the function to end.

    In the main thread, Ray Train would exit on Ctrl-C and lose the steps since the last checkpoint.

    Args:
        grace: seconds for the workers to save a checkpoint; a second interrupt ends the wait.
            An interrupt of a run whose workers have finished changes nothing and is ignored.
        has_stepped: whether there is anything to save; called repeatedly, until it returns True. Before that, an
            interrupt ends the run at once.

    Raises:
        KeyboardInterrupt: it was interrupted.
        TrainingStoppedError: another driver owns the directory.
        BaseException: whatever `function` raised.
    """
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # raised again in the waiting thread
            failures.append(error)
        finally:
            done.set()

    run.clear_stop_request()
    # Not Thread.join: after an interrupted join, Python 3.11 considers the thread dead.
    done = threading.Event()
    try:
        threading.Thread(target=call, daemon=True, name="rayface-fit").start()
        stepped = False
        while not done.wait(0.5):
            if run.is_lost():
                raise TrainingStoppedError(
                    f"train.output: {run}: another driver took it over while this one could not renew its lease: let "
                    "the other one train"
                )
            stepped = stepped or has_stepped()
    except KeyboardInterrupt:
        run.request_stop()
        done.wait(grace if stepped or has_stepped() else 0)
        run.clear_stop_request()
        if not (done.is_set() and not failures and run.has_outcome()):
            raise
    if failures:
        raise failures[0]
