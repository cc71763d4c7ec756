"""The log of a run: rank 0's journal, which is delivered to MLflow, and faults.log."""

from collections.abc import Mapping, Sequence

from rayface.data.streaming.batches import Fault
from rayface.tracking.journal import CHECKPOINT_FAULTS, RECOVERY
from rayface.training.checkpointing.writer import WriteTiming
from rayface.training.distributed import World
from rayface.training.run_directory import RunDirectory


class RunLog:
    """Writes the journal and faults.log on rank 0; on the other ranks every method does nothing.

    Args:
        run: the run directory.
        world: this worker's place.
    """

    def __init__(self, run: RunDirectory, world: World) -> None:
        self._run = run
        self._journal = run.worker_journal() if world.rank == 0 else None

    @property
    def last_step(self) -> int:
        """The highest step of a metric in the journal; -1 without one."""
        return self._journal.last_step if self._journal is not None else -1

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at a step."""
        if self._journal is not None:
            self._journal.metrics(values, step)

    def tags(self, values: Mapping[str, object]) -> None:
        """Log labels of the run."""
        if self._journal is not None:
            self._journal.tags(values)

    def checkpoint_written(self, timing: WriteTiming | None) -> None:
        """Log how long the last checkpoint on disk took, and how long training waited for it."""
        if timing is not None:
            seconds = {f"checkpoint/{name}": value for name, value in vars(timing).items() if name != "step"}
            self.metrics(seconds, timing.step)

    def corrupt_checkpoints(self, faults: Sequence[str]) -> None:
        """Log checkpoints that were not used because they are corrupt."""
        if faults:
            self.tags({CHECKPOINT_FAULTS: "; ".join(faults)})

    def corrupt_samples(self, faults: Sequence[Fault]) -> None:
        """Name corrupt samples in faults.log."""
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
