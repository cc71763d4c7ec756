"""Runs the parts of the kit one after the other within its time, and restarts the process that runs the cases."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from rayface.bench.gpu.budget import Budget
from rayface.bench.gpu.case import Kit, Outcome, Part
from rayface.bench.gpu.report import Report
from rayface.bench.gpu.worker import Began, Finished, Message, Request, serve

_START_SECONDS = 60.0  # to start a process, import PyTorch and reach the device
_GRACE_SECONDS = 2.0
_BARREN = 3  # processes in a row that end at their first case or before it; then the part is given up


class Worker:
    """The process that runs cases; started when it is needed, and again after it ended."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._process: BaseProcess | None = None
        self._connection: Connection

    def ask(self, request: Request) -> None:
        """Send a request, to a new process if there is none."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs, self._kit), daemon=False)
            self._process.start()
            theirs.close()
        self._connection.send(request)

    def answer(self, until: float) -> Message | None:
        """Return the next message; None once the time is over.

        Raises:
            EOFError: the process ended.
        """
        if not self._connection.poll(max(0.0, until - time.monotonic())):
            return None
        try:
            message: Message = self._connection.recv()
        except ConnectionError as error:
            raise EOFError from error
        return message

    def stop(self) -> int | None:
        """End the process; return the exit code that it had of its own, if it ended by itself."""
        if self._process is None:
            return None
        self._connection.close()
        self._process.join(_GRACE_SECONDS)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        self._process = None
        return code


def run_parts(parts: Sequence[Part], kit: Kit, seconds: float, report: Report) -> None:
    """Run the parts in order and report every case as it ends."""
    budget = Budget(seconds, parts)
    worker = Worker(kit)
    try:
        for part in parts:
            deadline = budget.deadline(part)
            report.begin(part, deadline - time.monotonic())
            for outcome in _outcomes(worker, part, deadline):
                report.add(outcome)
            report.end()
    finally:
        worker.stop()


def _outcomes(worker: Worker, part: Part, deadline: float) -> Iterator[Outcome]:
    """Yield what came of each case; a process that crashed or hung is replaced for the cases after it."""
    done: set[str] = set()
    barren = 0
    while barren < _BARREN:
        before, running, since = len(done), "", time.monotonic()
        until = max(deadline, since + _START_SECONDS) + _GRACE_SECONDS
        try:
            worker.ask(Request(part, frozenset(done), deadline))
            while not isinstance(message := worker.answer(until), Finished | None):
                if isinstance(message, Began):
                    running, since = message.case, time.monotonic()
                    until = min(deadline + _GRACE_SECONDS, since + message.limit)
                else:
                    done.add(message.case)
                    running, until = "", max(deadline, time.monotonic()) + _GRACE_SECONDS
                    yield message
            if message is not None:
                return
            status, note = "cut", f"stopped after {time.monotonic() - since:.0f} s"
            worker.stop()
        except EOFError:
            status, note = "crashed", f"its process ended with exit code {worker.stop()}"
        ended = len(done) - before + bool(running)
        barren = barren + 1 if ended == 0 or (ended == 1 and status == "crashed") else 0
        if running or ended == 0:
            name = running or f"start of part {part.key}"
            yield Outcome(case=name, status=status, seconds=time.monotonic() - since, note=note)  # type: ignore[arg-type]
            done.add(name)
    note = f"{barren} processes in a row ended at their first case or before it"
    yield Outcome(case=f"rest of part {part.key}", status="crashed", note=note)
