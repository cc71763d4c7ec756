"""Checkpoints on disk: tensors by torch.distributed.checkpoint, other values in progress.json.

torch.distributed.checkpoint takes 0.7 s of CPU time to import, so it is imported at the first checkpoint.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from rayface.models.digests import Digests, digests_of, verify, write_digests, write_synced
from rayface.models.run_files import all_in
from rayface.storage import sync_folder
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.progress import PROGRESS, Progress
from rayface.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

T = TypeVar("T")
logger = logging.getLogger(__name__)


State = dict[str, torch.Tensor]
Group = dist.ProcessGroup | None


def folder_of(run: Path, step: int) -> Path:
    return RunDirectory(run).checkpoints / f"step_{step:08d}"


def save(run: Path, state: State, progress: Progress, *, keep: int, group: Group = None) -> Path:
    """Write a checkpoint of all ranks under a temporary name, then rename it; remove old ones.

    Every rank writes, syncs and digests its own file; the final name means that all of them are on disk. Every rank
    must call it; runs DCP's collectives and four small gathers.

    Args:
        state: replicated tensors and RowShards; replicated ones are written once.
        progress: that of rank 0 is written.
        keep: number of newest checkpoints to keep, beside the one of the highest accuracy.
        group: process group of all ranks, for the collectives; None: the default group, if any.

    Raises:
        CheckpointError: a rank could not write; earlier checkpoints are unchanged.
    """
    import torch.distributed.checkpoint as dcp

    folder = folder_of(run, progress.step)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        _on_rank_0(lambda: _make_empty(temporary), group)
        dcp.save(dict(state), checkpoint_id=temporary, process_group=group, no_dist=not dist.is_initialized())
        own = _on_every_rank(lambda: _digest_own(temporary, progress), group)
        digests = {name: entry for part in own for name, entry in part.items()}
        _on_rank_0(lambda: _publish(temporary, folder, digests, keep), group)
    except dcp.api.CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise _not_written(temporary, folder, f"rank {rank}: {type(cause).__name__}: {cause}") from error
    except CheckpointError as error:
        raise _not_written(temporary, folder, str(error)) from error
    return folder


def newest_valid(run: Path, *, group: Group = None) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, and a line on every newer, corrupt one; (None, []) without checkpoints.

    Newer corrupt ones are renamed to damaged_step_N, so that they no longer count as the newest, and are reported in
    the log and in the run's faults.log. Rank 0 reads; one gather sends the result to all ranks.

    Raises:
        CheckpointError: there are checkpoints, and none of them is valid.
    """
    found: tuple[Path | None, list[str]] = _on_rank_0(lambda: _newest_valid(run), group)
    folder, faults = found
    if folder is None and faults:
        raise CheckpointError(
            f"{run}: none of its checkpoints is valid: {'; '.join(faults)[:2000]}; restore what is missing, or start "
            "a new run with another train.output"
        )
    return folder, faults


def last_step(run: Path) -> int:
    """Return the step of the newest checkpoint, valid or not; -1 without one."""
    return max((int(folder.name.removeprefix("step_")) for folder in all_in(run)), default=-1)


def best_in(run: Path) -> Path | None:
    """Return the checkpoint of the highest accuracy; of equal ones the first, which is closest to the validation."""
    scored = [(folder, _accuracy(folder)) for folder in all_in(run)]
    known = [(folder, accuracy) for folder, accuracy in scored if accuracy is not None]
    return max(known, key=lambda pair: pair[1])[0] if known else None


def load(folder: Path, state: State) -> Progress:
    """Load the tensors of `state` from a checkpoint of any number of ranks; return its progress."""
    import torch.distributed.checkpoint as dcp

    dcp.load(dict(state), checkpoint_id=folder, no_dist=not dist.is_initialized())
    return Progress.read(folder)


def empty_like_saved(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Return empty tensors of the shapes saved under `prefix`, for state that does not exist before loading."""
    return {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in _tensors_in(folder).items()
        if name.startswith(prefix)
    }


def saved_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the full sizes of a checkpoint's tensors by name."""
    return {name: tuple(saved.size) for name, saved in _tensors_in(folder).items()}


def _tensors_in(folder: Path) -> "dict[str, TensorStorageMetadata]":
    import torch.distributed.checkpoint as dcp

    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: saved for name, saved in metadata.items() if isinstance(saved, dcp.metadata.TensorStorageMetadata)}


def _newest_valid(run: Path) -> tuple[Path | None, list[str]]:
    damaged: dict[Path, list[str]] = {}
    for folder in reversed(all_in(run)):
        faults = verify(folder)
        if not faults:
            return folder, [_put_aside(run, other, reasons, folder) for other, reasons in damaged.items()]
        damaged[folder] = faults
    return None, [reason for reasons in damaged.values() for reason in reasons]


def _put_aside(run: Path, damaged: Path, reasons: list[str], used: Path) -> str:
    aside = damaged.with_name(f"damaged_{damaged.name}")
    line = f"checkpoint {damaged.name} is damaged, {used.name} is used instead: {'; '.join(reasons)[:2000]}"
    logger.warning("%s; put aside as %s", line, aside)
    RunDirectory(run).add_faults([line])
    shutil.rmtree(aside, ignore_errors=True)
    damaged.replace(aside)
    return line


def _make_empty(temporary: Path) -> None:
    for stale in temporary.parent.glob(".step_*.tmp"):  # left by killed runs; only one write runs at a time
        shutil.rmtree(stale)
    temporary.mkdir(parents=True)


def _digest_own(temporary: Path, progress: Progress) -> Digests:
    """Return digests of the files that this rank wrote; DCP names files by rank and has synced them."""
    rank = _rank()
    names = [path.name for path in temporary.glob(f"__{rank}_*")]
    if rank == 0:
        write_synced(temporary / PROGRESS, json.dumps(progress.as_dict(), indent=1))
        names += [".metadata", PROGRESS]
    return digests_of(temporary, names)


def _publish(temporary: Path, folder: Path, digests: Digests, keep: int) -> None:
    write_digests(temporary, digests)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    sync_folder(str(folder.parent))
    run = folder.parent.parent
    kept = {*all_in(run)[-keep:], best_in(run)}
    for old in all_in(run):
        if old not in kept:
            # Rename it first: after a crash here, a half-deleted folder must not look like a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))


def _not_written(temporary: Path, folder: Path, reason: str) -> CheckpointError:
    if _rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)  # frees its part of a full disk
    reason = " ".join(reason.split())[:500]
    return CheckpointError(f"checkpoint {folder} could not be written: {reason}; remove the cause, then resume the run")


def _accuracy(folder: Path) -> float | None:
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
    except OSError as error:
        outcome = None, f"{type(error).__name__}: {error}"
    outcomes: list[Any] = [outcome]
    if dist.is_initialized():
        outcomes = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, outcome, group=group)
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise CheckpointError(f"rank {rank}: {failure}")
    return [result for result, _ in outcomes]


def _on_rank_0(action: Callable[[], T], group: Group) -> T:
    results = _on_every_rank(lambda: action() if _rank() == 0 else None, group)
    result: T = results[0]  # type: ignore[assignment]
    return result


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def set_aside(run: Path, step: int, *, group: Group = None) -> list[Path]:
    """Rename checkpoints of `step` and later, so that no resume uses them; return the remaining ones.

    Rank 0 renames, and one gather sends the result: a network disk may show other ranks another state.
    """
    return _on_rank_0(lambda: _set_aside(run, step), group)


def _set_aside(run: Path, step: int) -> list[Path]:
    every = all_in(run)
    good = [folder for folder in every if folder.name < folder_of(run, step).name]
    for folder in every[len(good) :]:
        aside = folder.with_name(f"not_finite_{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)  # left by an earlier roll-back from there
        folder.rename(aside)
    return good
