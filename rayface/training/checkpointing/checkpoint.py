"""Checkpoints of a run: tensors by torch.distributed.checkpoint, other values in progress.json.

torch.distributed.checkpoint takes 0.7 s of CPU time to import, so it is imported at the first checkpoint.
"""

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from rayface.models.digests import Digests, verify
from rayface.models.run_files import all_in
from rayface.storage import AnyPath, DataError, StorageError
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.folders import (
    DESCRIBING,
    Group,
    NewFolder,
    delete,
    folder_of,
    new_folder,
    put_aside,
)
from rayface.training.checkpointing.progress import Progress
from rayface.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

T = TypeVar("T")
logger = logging.getLogger(__name__)


State = dict[str, torch.Tensor]


def save(run: AnyPath, state: State, progress: Progress, *, keep: int, group: Group = None) -> AnyPath:
    """Write a checkpoint of all ranks, then publish it; remove old ones.

    Every rank writes and digests its own file; a checkpoint that `all_in` returns is complete, see `folders`. Every
    rank must call it; runs DCP's collectives and four small gathers.

    Args:
        state: replicated tensors and RowShards; replicated ones are written once.
        progress: that of rank 0 is written.
        keep: number of newest checkpoints to keep, beside the one of the highest accuracy.
        group: process group of all ranks, for the collectives; None: this process is alone.

    Raises:
        CheckpointError: a rank could not write; earlier checkpoints are unchanged.
        RuntimeError, ValueError: the ranks lost their connection, or left the group; as above.
    """
    import torch.distributed.checkpoint as dcp

    new = new_folder(run, progress.step)
    written = json.dumps(progress.as_dict(), indent=1)
    failure: BaseException
    try:
        _on_rank_0(new.begin, group)
        new.write(state, group)
        own = _on_every_rank(lambda: new.own_digests(_rank(group), written), group)
        digests = {name: entry for part in own for name, entry in part.items()}
        _on_rank_0(lambda: _publish(new, digests, keep), group)
        return new.folder
    except dcp.api.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        reason, failure = f"rank {rank}: {type(cause).__name__}: {cause}", error
    except CheckpointError as error:
        reason, failure = str(error), error
    if _rank(group) == 0:
        new.abandon()
    reason = " ".join(reason.split())[:500]
    raise CheckpointError(
        f"checkpoint {new.folder} could not be written: {reason}; remove the cause, then resume the run"
    ) from failure


def newest_valid(run: AnyPath, *, group: Group = None) -> tuple[AnyPath | None, list[str]]:
    """Return the newest valid checkpoint, and a line on every newer, corrupt one; (None, []) without checkpoints.

    Newer corrupt ones are put aside as corrupt, so that they no longer count as the newest, and are reported in the log
    and in the run's faults.log. Rank 0 reads; one gather sends the result to all ranks.

    Raises:
        CheckpointError: there are checkpoints, and none of them is valid.
    """
    found: tuple[AnyPath | None, list[str]] = _on_rank_0(lambda: _newest_valid(run), group)
    folder, faults = found
    if folder is None and faults:
        raise CheckpointError(
            f"{run}: none of its checkpoints is valid: {'; '.join(faults)[:2000]}; restore what is missing, or start "
            "a new run with another train.output"
        )
    return folder, faults


def newest_described(run: AnyPath) -> AnyPath | None:
    """Return the newest checkpoint whose files have their sizes and whose progress and tensor list are valid.

    Reads no tensors; `newest_valid`, which does, may return an older one. None without such a checkpoint.
    """
    return next((each for each in reversed(all_in(run)) if not verify(each, contents=DESCRIBING)), None)


def last_step(run: AnyPath) -> int:
    """Return the step of the newest checkpoint, valid or not; -1 without one."""
    return max((int(folder.name.removeprefix("step_")) for folder in all_in(run)), default=-1)


def best_in(run: AnyPath) -> AnyPath | None:
    """Return the checkpoint of the highest accuracy; of equal ones the first, which is closest to the validation."""
    scored = [(folder, _accuracy(folder)) for folder in all_in(run)]
    known = [(folder, accuracy) for folder, accuracy in scored if accuracy is not None]
    return max(known, key=lambda pair: pair[1])[0] if known else None


def load(folder: AnyPath, state: State) -> Progress:
    """Load the tensors of `state` from a checkpoint of any number of ranks; return its progress."""
    import torch.distributed.checkpoint as dcp

    from rayface.models.store_files import reader_of

    reader = reader_of(folder)
    reader.read_metadata()  # of an error here PyTorch would say another one, with tracebacks
    dcp.load(dict(state), storage_reader=reader, no_dist=not dist.is_initialized())
    return Progress.read(folder)


def empty_like_saved(folder: AnyPath, prefix: str) -> dict[str, torch.Tensor]:
    """Return empty tensors of the shapes saved under `prefix`, for state that does not exist before loading."""
    return {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in _tensors_in(folder).items()
        if name.startswith(prefix)
    }


def saved_sizes(folder: AnyPath) -> dict[str, tuple[int, ...]]:
    """Return the full sizes of a checkpoint's tensors by name."""
    return {name: tuple(saved.size) for name, saved in _tensors_in(folder).items()}


def _tensors_in(folder: AnyPath) -> "dict[str, TensorStorageMetadata]":
    import torch.distributed.checkpoint as dcp

    from rayface.models.store_files import reader_of

    metadata = reader_of(folder).read_metadata().state_dict_metadata
    return {name: saved for name, saved in metadata.items() if isinstance(saved, dcp.metadata.TensorStorageMetadata)}


def _newest_valid(run: AnyPath) -> tuple[AnyPath | None, list[str]]:
    corrupt: dict[AnyPath, list[str]] = {}
    for folder in reversed(all_in(run)):
        faults = verify(folder)
        if not faults:
            return folder, [_put_aside(run, other, reasons, folder) for other, reasons in corrupt.items()]
        corrupt[folder] = faults
    return None, [reason for reasons in corrupt.values() for reason in reasons]


def _put_aside(run: AnyPath, corrupt: AnyPath, reasons: list[str], used: AnyPath) -> str:
    line = f"checkpoint {corrupt.name} is corrupt, {used.name} is used instead: {'; '.join(reasons)[:2000]}"
    logger.warning("%s; put aside as %s", line, put_aside(corrupt, "corrupt"))
    RunDirectory(run).add_faults([line])
    return line


def _publish(new: NewFolder, digests: Digests, keep: int) -> None:
    new.publish(digests)
    run = new.folder.parent.parent
    kept = {*all_in(run)[-keep:], best_in(run)}
    for old in all_in(run):
        if old not in kept:
            delete(old)


def _accuracy(folder: AnyPath) -> float | None:
    try:
        value = Progress.read(folder).accuracy
    except (OSError, ValueError, TypeError, AttributeError):  # corrupt: cannot be the best
        return None
    return float(value) if isinstance(value, int | float) else None


def _on_every_rank(action: Callable[[], T], group: Group) -> list[T]:
    """Run an action on every rank and return the results in order of rank; if one fails, all raise the same error."""
    outcome: tuple[T | None, str | None]
    try:
        outcome = action(), None
    except (OSError, DataError, StorageError) as error:
        outcome = None, f"{type(error).__name__}: {error}"
    outcomes: list[Any] = [outcome]
    if group is not None:
        outcomes = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, outcome, group=group)
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise CheckpointError(f"rank {rank}: {failure}")
    return [result for result, _ in outcomes]


def _on_rank_0(action: Callable[[], T], group: Group) -> T:
    results = _on_every_rank(lambda: action() if _rank(group) == 0 else None, group)
    result: T = results[0]  # type: ignore[assignment]
    return result


def _rank(group: Group) -> int:
    """Return this process's rank; without a group 0.

    Whether a default group exists is not asked: a rank that has left it would take itself for rank 0.
    """
    return 0 if group is None else dist.get_rank(group)


def set_aside(run: AnyPath, step: int, *, group: Group = None) -> list[AnyPath]:
    """Put checkpoints of `step` and later aside, so that no resume uses them; return the remaining ones.

    Rank 0 renames, and one gather sends the result: a network disk may show other ranks another state.
    """
    return _on_rank_0(lambda: _set_aside(run, step), group)


def _set_aside(run: AnyPath, step: int) -> list[AnyPath]:
    every = all_in(run)
    good = [folder for folder in every if folder.name < folder_of(run, step).name]
    for folder in every[len(good) :]:
        put_aside(folder, "not_finite")
    return good
