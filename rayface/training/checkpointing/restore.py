"""The state from which workers start: the newest mirrored state or valid checkpoint."""

import math

from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.mirror import Mirror
from rayface.training.checkpointing.state import CheckpointFolder, SavedState
from rayface.training.checkpointing.writer import CheckpointWriter
from rayface.training.run_directory import RunDirectory
from rayface.training.run_log import RunLog


def newest_state(run: RunDirectory, mirror: Mirror, checkpoints: CheckpointWriter, log: RunLog) -> SavedState | None:
    """Return the newest state of the run, None if there is none; the same on all ranks.

    Raises:
        CheckpointError: there are checkpoints, and none of them is valid.
    """
    # A new driver has no mirrored states, and its stores may not have started yet.
    mirrored = mirror.newest(checkpoint.last_step(run.path) if run.restarts() else math.inf)
    if mirrored is not None:
        return mirrored
    folder, faults = checkpoints.newest_valid()
    log.corrupt_checkpoints(faults)
    return None if folder is None else CheckpointFolder(folder)
