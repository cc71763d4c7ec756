"""Log of a run: rank 0's journal, which is delivered to MLflow, and faults.log."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from rayface.data.streaming.batches import Fault
from rayface.progress import recorded_in
from rayface.tracking.journal import CHECKPOINT_FAULTS, RECOVERY
from rayface.training.checkpointing.writer import WriteTiming
from rayface.training.distributed import World
from rayface.training.run_directory import RunDirectory


class RunLog:
    """Write the journal and faults.log on rank 0; on the other ranks every method does nothing.

    Args:
        run: the run directory.
        world: rank of this worker.
    """

    def __init__(self, run: RunDirectory, world: World) -> None:
        self._run = run
        self._journal = run.worker_journal() if world.rank == 0 else None

    @property
    def last_step(self) -> int:
        """The highest step of a metric in the journal; -1 if there is none."""
        return self._journal.last_step if self._journal is not None else -1

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        if self._journal is not None:
            self._journal.metrics(values, step)

    def phases(self) -> AbstractContextManager[None]:
        """Record the phases of this process in the journal inside the context."""
        return nullcontext() if self._journal is None else recorded_in(self._journal)

    def tags(self, values: Mapping[str, object]) -> None:
        """Log tags of the run."""
        if self._journal is not None:
            self._journal.tags(values)

    def checkpoint_written(self, timing: WriteTiming | None) -> None:
        """Log the seconds of the last checkpoint write, and the seconds that training waited for it."""
        if timing is not None:
            seconds = {f"checkpoint/{name}": value for name, value in vars(timing).items() if name != "step"}
            self.metrics(seconds, timing.step)

    def corrupt_checkpoints(self, faults: Sequence[str]) -> None:
        """Log corrupt checkpoints that were skipped."""
        if faults:
            self.tags({CHECKPOINT_FAULTS: "; ".join(faults)})

    def corrupt_samples(self, faults: Sequence[Fault]) -> None:
        """Append corrupt samples to faults.log."""
        self._append([str(fault) for fault in faults])

    def recovery(self, text: str) -> None:
        """Report, in the journal and in faults.log, why training was interrupted and how it continues."""
        self.tags({RECOVERY: text})
        self._append([text])

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

    def _append(self, lines: Sequence[str]) -> None:
        if lines and self._journal is not None:
            self._run.add_faults(lines)
