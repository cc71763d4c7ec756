"""Non-finite losses: roll back to the last good checkpoint, then skip the batch or lower the rate; or stop."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rayface.config import TrainConfig
from rayface.storage import AnyPath
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values


class TrainingStoppedError(RuntimeError):
    """A run cannot continue; the message is for the user, one line."""


class NodesLostError(TrainingStoppedError):
    """The cluster lost nodes that the workers need, and no others joined within train.wait_for_nodes."""


class NotFiniteError(Exception):
    """The loss or the gradient of a step is NaN or infinite; raised on every rank.

    Args:
        reason: what is not finite, in one line.
        step: the step.
        bad_from: checkpoints of this step and later may be corrupt.
    """

    def __init__(self, reason: str, *, step: int, bad_from: int) -> None:
        super().__init__(reason)
        self.step, self.bad_from = step, bad_from


@dataclass(kw_only=True)
class Recovery:
    """Changes to a run by roll-backs; part of every checkpoint, so that a resumed run keeps them."""

    skipped: list[int] = field(default_factory=list)
    """Steps whose batches are skipped."""
    rate_factor: float = 1.0
    """Factor of the schedule's learning rate."""
    rollbacks: int = 0

    def change(self, step: int, train: TrainConfig) -> str:
        """React to a non-finite step as train.on_nan says; return the reaction in words."""
        self.rollbacks += 1
        if train.on_nan == "skip":
            self.skipped.append(step)
            return f"without the batch of step {step}"
        self.rate_factor *= train.nan_lr_factor
        return f"at {self.rate_factor:g} times the learning rate"

    def may_roll_back(self, train: TrainConfig) -> bool:
        return train.on_nan != "stop" and self.rollbacks < train.max_rollbacks

    def state(self) -> Values:
        return asdict(self)

    def remember(self, run: RunDirectory) -> None:
        """Store the state beside the checkpoints, in case workers die before the next checkpoint."""
        run.write_rollbacks(self.state())


def remembered(run: RunDirectory, saved: Recovery) -> Recovery:
    """Return the state of a checkpoint, or that of a later roll-back."""
    kept = run.read_rollbacks()
    later = Recovery(**kept) if kept is not None else saved
    return later if later.rollbacks > saved.rollbacks else saved


def stopped(error: NotFiniteError, good: Sequence[AnyPath], rollbacks: int, lr: float) -> TrainingStoppedError:
    """Return the error that stops the run, with the last good checkpoint and a remedy."""
    way_on = (
        f"the last good checkpoint is {good[-1]}; resume from it with"
        if good
        else "there is no good checkpoint; start a new run with"
    )
    tried = f" after {rollbacks} roll-backs" if rollbacks else ""
    return TrainingStoppedError(f"{error}{tried}; {way_on} a lower optim.lr (now {lr:g}) or train.precision=fp32")
