"""Checkpoints written beside the training: the step loop waits for a copy in memory, a thread for the disk."""

import copy
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rayface.training import checkpoint
from rayface.training.checkpoint import CheckpointError, RowShard, State


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, while training goes on; every rank makes one.

    The thread's collectives run on a gloo group of their own, so that they cannot meet those of the training.
    Memory: a copy of this rank's state in host memory (pinned where the state is on a GPU), kept between checkpoints.

    Args:
        run: the run directory, seen by all ranks.
        keep: newest checkpoints to keep, beside the best.
    """

    def __init__(self, run: Path, *, keep: int) -> None:
        self._run, self._keep = run, keep
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._buffers: State = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def newest_whole(self) -> tuple[Path | None, list[str]]:
        """See `checkpoint.newest_whole`."""
        self.wait()
        return checkpoint.newest_whole(self._run, group=self._group)

    def reserve(self, state: State) -> None:
        """Take the memory for a copy now: a machine too small shall fail at the start, not at the first checkpoint."""
        self._copy(state)

    def save(self, state: State, progress: dict[str, Any]) -> None:
        """Take a copy of the state and begin to write it, after the last one is written; every rank must call it.

        Args:
            state: as for `checkpoint.save`; may change as soon as this returns.
            progress: as for `checkpoint.save`.
        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        copied, progress = self._copy(state), copy.deepcopy(progress)
        # A daemon: a worker that fails must be able to end while a write waits for ranks that are gone.
        self._thread = threading.Thread(target=self._write, args=(copied, progress), daemon=True, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            CheckpointError: the last one could not be written.
            RuntimeError: the ranks lost each other meanwhile.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            raise error
        if error is not None:  # not agreed among the ranks, as when one of them is gone
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            kind = RuntimeError if isinstance(error, RuntimeError) else CheckpointError
            raise kind(f"checkpoint of {self._run} could not be written: {reason}") from error

    def _write(self, state: State, progress: dict[str, Any]) -> None:
        try:
            checkpoint.save(self._run, state, progress, keep=self._keep, group=self._group)
        except BaseException as error:  # raised again in the thread that trains
            self._error = error

    def _copy(self, state: State) -> State:
        """The state in buffers of ours; a buffer of an earlier checkpoint serves again where it fits."""
        used, buffers = self._buffers, {}
        for name, tensor in state.items():
            local = tensor.as_subclass(torch.Tensor).detach()
            buffer = used.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            buffers[name] = buffer.copy_(local, non_blocking=local.is_cuda)
        for device in {tensor.device for tensor in state.values() if tensor.is_cuda}:
            torch.cuda.synchronize(device)
        self._buffers = buffers
        return {n: s.over(buffers[n]) if isinstance(s, RowShard) else buffers[n] for n, s in state.items()}
