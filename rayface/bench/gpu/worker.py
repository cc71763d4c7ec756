"""The process that runs the cases, apart from the one that reports: a crash or a hang ends it alone.

An illegal access on a GPU makes every later call of its process fail. Such a process ends itself, and the cases that
are left run in a new one.
"""

import gc
import importlib
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rayface.bench.gpu.case import Case, Kit, Outcome, Part, Status

_LEAST_LIMIT, _LIMIT_FACTOR = 30.0, 8.0  # seconds, and times what a case should take, before it counts as hung
_LONGEST_NOTE = 400


@dataclass(frozen=True)
class Request:
    """Run the cases of a part that are not yet done, until the deadline."""

    part: Part
    done: frozenset[str]
    deadline: float


@dataclass(frozen=True)
class Began:
    """A case began; it hangs if it is not over in `limit` seconds."""

    case: str
    limit: float


@dataclass(frozen=True)
class Finished:
    """All cases of the request are done or cut."""


Message = Began | Outcome | Finished


def serve(connection: Connection, kit: Kit) -> None:
    """Answer requests until the other side is gone."""
    while True:
        try:
            request: Request = connection.recv()
            for message in _messages(kit, request):
                connection.send(message)
                if isinstance(message, Outcome) and message.status == "error" and not _usable(kit.device):
                    connection.close()
                    os._exit(1)  # the destructors of CUDA's objects would wait for a device that does not answer
        except (EOFError, BrokenPipeError):
            return


def _messages(kit: Kit, request: Request) -> Iterator[Message]:
    cases = _cases(kit, request.part)
    while True:
        try:
            case = next(cases, None)
        except Exception as error:
            yield Outcome(case=f"cases of part {request.part.key}", status="error", note=_one_line(error))
            break
        if case is None:
            break
        if case.name in request.done or kit.contains not in case.name:
            continue
        needed, left = 0.0 if kit.mini else case.seconds, request.deadline - time.monotonic()
        if left <= needed:
            note = f"takes about {case.seconds:.0f} s, {max(0.0, left):.0f} s of the part's time were left"
            yield Outcome(case=case.name, status="cut", note=note)
            continue
        yield Began(case.name, max(_LEAST_LIMIT, _LIMIT_FACTOR * case.seconds))
        yield _outcome(case)
        _tidy(kit.device)
    yield Finished()


def _cases(kit: Kit, part: Part) -> Iterator[Case]:
    yield from importlib.import_module(part.module).cases(kit)


def _outcome(case: Case) -> Outcome:
    start = time.monotonic()
    try:
        found = case.run()
    except torch.OutOfMemoryError as error:
        return _ended(case, start, "out of memory", error)
    except Exception as error:
        return _ended(case, start, "error", error)
    status: Status = "passed" if found.passed else "failed"
    seconds = time.monotonic() - start
    return Outcome(case=case.name, status=status, seconds=seconds, figures=found.figures(), note=found.note)


def _ended(case: Case, start: float, status: Status, error: Exception) -> Outcome:
    return Outcome(case=case.name, status=status, seconds=time.monotonic() - start, note=_one_line(error))


def _one_line(error: Exception) -> str:
    """Return the error, and the last places that it came through, PyTorch's left out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename][
        -3:
    ]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{' '.join(f'{type(error).__name__}: {error}'.split())[:_LONGEST_NOTE]} [{places}]"


def _tidy(device: str) -> None:
    """Give back what the last case held, so that the next one measures its own memory."""
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # a device that no longer answers; `serve` has seen it
            return


def _usable(device: str) -> bool:
    if device != "cuda":
        return True
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True
