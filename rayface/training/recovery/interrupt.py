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


class ThreadedCall:
    """A call in a thread of its own, for a main thread that an interrupt may take out of its wait.

    Attributes:
        done: set when the call has ended. Not Thread.join: after an interrupted join, Python 3.11 considers the thread
            dead.
        failures: what the call raised, if anything, to be raised again by the waiting thread.
    """

    def __init__(self, function: Callable[[], object], name: str) -> None:
        self.done, self.failures = threading.Event(), list[BaseException]()
        self._function, self._name = function, name

    def start(self) -> None:
        """Start the call."""
        threading.Thread(target=self._run, daemon=True, name=self._name).start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # raised again in the waiting thread
            self.failures.append(error)
        finally:
            self.done.set()


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
    call = ThreadedCall(function, "rayface-fit")
    done, failures = call.done, call.failures
    run.clear_stop_request()
    try:
        call.start()
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
