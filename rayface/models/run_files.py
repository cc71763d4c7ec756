"""Files of a run that packages below training read: its config, its checkpoints as folders, its pair scores."""

from rayface.models.digests import DIGESTS, verify
from rayface.storage import AnyPath, RemotePath

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
PAIR_SCORES = "pair_scores.parquet"
PROGRESS = "progress.json"


def all_in(run: AnyPath) -> list[AnyPath]:
    """Return the finished checkpoints of a run, oldest first; `digests.verify` checks whether one is valid."""
    if isinstance(run, RemotePath):  # digests.json is written last
        finished = (name.split("/") for name in (run / CHECKPOINTS).files())
        steps = [parts[0] for parts in finished if parts[0].startswith("step_") and parts[1:] == [DIGESTS]]
        return [run / CHECKPOINTS / step for step in steps]
    return sorted(path.parent for path in (run / CHECKPOINTS).glob(f"step_*/{PROGRESS}"))


def checkpoints_in(directory: AnyPath) -> list[AnyPath]:
    """Return the checkpoints of a directory, which is a checkpoint or a run directory; oldest first.

    Raises:
        ValueError: it is neither.
    """
    if any((directory / name).is_file() for name in (PROGRESS, DIGESTS, ".metadata")):
        return [directory]
    found = all_in(directory)
    if not found:
        raise ValueError(f"DIR {directory}: holds no checkpoint: give a run directory or RUN/checkpoints/step_...")
    return found


def valid_checkpoint(directory: AnyPath) -> AnyPath:
    """Return the checkpoint in a directory, or the newest one of a run directory; reads all of its bytes.

    Raises:
        ValueError: there is none, or it is corrupt.
    """
    folder = checkpoints_in(directory)[-1]
    faults = verify(folder)
    if faults:
        raise ValueError(f"DIR {folder}: is corrupt: {'; '.join(faults)[:2000]}; give another checkpoint")
    return folder
