"""The workers' side of a fault: gates at exact places of a run, and a record of every sample that was trained on.

A worker that comes to a gate says so in a file and waits there until the harness, which has done its damage, opens it.
A gate stops a run once: a step that is done again after a restart passes through.
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
class Gate:
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


def gated(worker: Callable[[Any], None], gates: Sequence[Gate], folder: Path, windows_per_execution: int | None) -> Any:
    """A `train_worker` with gates.

    Args:
        folder: exists, and is seen by all workers.
        windows_per_execution: how far the stream may read ahead; None: as far as ever.
    """

    def train_worker(job: Any) -> None:
        from rayface.data.streaming import dealer

        if windows_per_execution is not None:
            dealer._BLOCK_IMAGES, dealer._TURNS_AHEAD = 1, 0
            dealer._TURNS_PER_EXECUTION = windows_per_execution
        _install(gates, folder)
        worker(job)

    return train_worker


def _install(gates: Sequence[Gate], folder: Path) -> None:
    from rayface.heads import PartialFC
    from rayface.training.checkpointing import checkpoint
    from rayface.training.train_step import TrainStep

    now = {"step": -1, "rank": -1}
    train_step, loss = TrainStep.run, PartialFC.loss
    make_empty, digest_own = checkpoint._make_empty, checkpoint._digest_own

    @functools.wraps(train_step)
    def recorded_step(self: Any, batch: Any, *rest: Any) -> Any:
        now.update(step=batch.step, rank=self.world.rank)
        # A checkpoint is written beside the steps: its fault strikes before the first of them, not at a later fault.
        _hold([gate for gate in gates if (gate.place, gate.step, gate.rank) == ("write", *now.values())], folder)
        value = train_step(self, batch, *rest)
        _record(folder / "trained.jsonl", batch)
        return value

    @functools.wraps(loss)
    def gated_loss(self: Any, embeddings: Any, *rest: Any, **options: Any) -> Any:
        answer = _pass(gates, folder, place="step", **now)
        value = loss(self, embeddings * math.nan if answer == "nan" else embeddings, *rest, **options)
        return value * math.inf if answer == "inf" else value

    @functools.wraps(make_empty)
    def gated_begin(temporary: Path) -> None:
        make_empty(temporary)
        _pass(gates, folder, place="begin", step=int(temporary.name.split("_")[1].split(".")[0]), rank=0)

    @functools.wraps(digest_own)
    def gated_write(temporary: Path, progress: Any) -> Any:
        _pass(gates, folder, place="write", step=progress.step, rank=checkpoint._rank())
        return digest_own(temporary, progress)

    TrainStep.run, PartialFC.loss = recorded_step, gated_loss  # type: ignore[method-assign]
    checkpoint._make_empty, checkpoint._digest_own = gated_begin, gated_write


def _record(path: Path, batch: Any) -> None:
    """One line, written with one call: ranks append to one file, and the last line on a row is the one that counts."""
    images = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in batch.images]
    line = json.dumps({"time": time.monotonic(), "step": batch.step, "first_row": batch.rows.start, "images": images})
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _pass(gates: Sequence[Gate], folder: Path, **here: Any) -> str:
    """Wait at the gate that stands here, if there is one; what the harness answered."""
    for gate in gates:
        if asdict(gate) == here:
            with contextlib.suppress(FileExistsError):
                return _wait(gate, folder)
    return ""


def _hold(gates: Sequence[Gate], folder: Path) -> None:
    while not all(gate.opened(folder).exists() for gate in gates):
        time.sleep(_POLL_SECONDS)


def _wait(gate: Gate, folder: Path) -> str:
    import ray

    reached, opened = gate.reached(folder), gate.opened(folder)
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
