"""The workers' side of a fault: breakpoints at exact places of a run, and a record of every sample that was trained on.

A worker at a breakpoint says so in a file and waits there until the harness has injected the fault and opens it.
A point stops a run once: a step that is done again after a restart passes through.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Breakpoint:
    """A place of a run.

    Attributes:
        step: counted from 0 for a step, the finished steps for a checkpoint.
        place: "step": between forward and backward; "begin": the folder of a checkpoint is made, and empty (rank 0);
            "write": the rank's file of it is written, and it does not have its name yet.
    """

    step: int
    rank: int = 1
    place: Literal["step", "begin", "write"] = "step"

    def reached(self, folder: Path) -> Path:
        return folder / f"{self.place}-{self.step}-{self.rank}.reached"

    def opened(self, folder: Path) -> Path:
        return folder / f"{self.place}-{self.step}-{self.rank}.opened"


def with_breakpoints(
    worker: Callable[[Any], None], breakpoints: Sequence[Breakpoint], folder: Path, windows_per_execution: int | None
) -> Any:
    """A `train_worker` with breakpoints.

    Args:
        folder: exists, and is seen by all workers.
        windows_per_execution: how far the stream may read ahead; None: as far as ever.
    """

    def train_worker(job: Any) -> None:
        from rayface.data.streaming import dealer

        if windows_per_execution is not None:
            dealer._BLOCK_IMAGES, dealer._TURNS_AHEAD = 1, 0
            dealer._TURNS_PER_EXECUTION = windows_per_execution
        _install(breakpoints, folder)
        worker(job)

    return train_worker


def _install(breakpoints: Sequence[Breakpoint], folder: Path) -> None:
    from rayface.heads import PartialFC
    from rayface.training.checkpointing.folders import DiskFolder
    from rayface.training.train_step import TrainStep

    now = {"step": -1, "rank": -1}
    train_step, loss = TrainStep.run, PartialFC.loss
    begin, own_digests = DiskFolder.begin, DiskFolder.own_digests

    @functools.wraps(train_step)
    def recorded_step(self: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        now.update(step=batch.step, rank=self.world.rank)
        # A checkpoint is written beside the steps: its fault is injected before the first of them.
        _hold(
            [point for point in breakpoints if (point.place, point.step, point.rank) == ("write", *now.values())],
            folder,
        )
        value = train_step(self, batch, *rest, **options)
        _record(folder / "trained.jsonl", batch, now["rank"])
        return value

    @functools.wraps(loss)
    def loss_with_breakpoint(self: Any, embeddings: Any, *rest: Any, **options: Any) -> Any:
        answer = _pass(breakpoints, folder, place="step", **now)
        value = loss(self, embeddings * math.nan if answer == "nan" else embeddings, *rest, **options)
        return value * math.inf if answer == "inf" else value

    @functools.wraps(begin)
    def begin_with_breakpoint(self: Any) -> None:
        begin(self)
        _pass(breakpoints, folder, place="begin", step=int(self.folder.name.split("_")[1]), rank=0)

    @functools.wraps(own_digests)
    def write_with_breakpoint(self: Any, rank: int, progress: str) -> Any:
        _pass(breakpoints, folder, place="write", step=int(self.folder.name.split("_")[1]), rank=rank)
        return own_digests(self, rank, progress)

    TrainStep.run, PartialFC.loss = recorded_step, loss_with_breakpoint  # type: ignore[method-assign]
    DiskFolder.begin, DiskFolder.own_digests = begin_with_breakpoint, write_with_breakpoint  # type: ignore[method-assign]


def _record(path: Path, batch: Any, rank: int) -> None:
    """One line, written with one call: ranks append to one file, and the last line on a row is the one that counts."""
    import ray

    images = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in batch.images]
    place = {"rank": rank, "node": ray.get_runtime_context().get_node_id()}
    step = {"time": time.monotonic(), "step": batch.step, "first_row": batch.rows.start, "images": images}
    line = json.dumps({**step, **place})
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _pass(breakpoints: Sequence[Breakpoint], folder: Path, **here: Any) -> str:
    """Wait at the breakpoint of this place, if there is one; return what the harness answered."""
    for point in breakpoints:
        if asdict(point) == here:
            with contextlib.suppress(FileExistsError):
                return _wait(point, folder)
    return ""


def _hold(breakpoints: Sequence[Breakpoint], folder: Path) -> None:
    while not all(point.opened(folder).exists() for point in breakpoints):
        time.sleep(_POLL_SECONDS)


def _wait(point: Breakpoint, folder: Path) -> str:
    import ray

    reached, opened = point.reached(folder), point.opened(folder)
    reached.touch(exist_ok=False)
    temporary = reached.with_suffix(".new")
    temporary.write_text(json.dumps({"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}))
    temporary.replace(reached)
    while not opened.exists():
        time.sleep(_POLL_SECONDS)
    answer = opened.read_text()
    if answer.startswith("clock "):
        _step_clock(float(answer.split()[1]))
    return answer


def _step_clock(seconds: float) -> None:
    real = time.time
    time.time = lambda: real() + seconds
