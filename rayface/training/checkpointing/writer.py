"""Asynchronous checkpoints: a thread copies the class centers between updates and writes them."""

import copy
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from rayface.storage import AnyPath
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.checkpoint import State
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.snapshot import Snapshot, copied, plain
from rayface.training.distributed import host_group


@dataclass(frozen=True, kw_only=True)
class WriteTiming:
    """Seconds of one checkpoint."""

    step: int
    wait_seconds: float
    """Time that training waited for it."""
    copy_seconds: float
    """Time of the thread for the copy of the row shards."""
    write_seconds: float
    """Time of the thread, including the copy."""


class CheckpointWriter:
    """Write a run's checkpoints, one at a time, while training continues; every rank has one writer.

    A thread copies the row shards (class centers and their moments), see `Snapshot`, and writes. The thread's
    collectives run on a separate gloo group, so that they cannot interfere with those of the training.
    Memory: a copy of this rank's state in host memory (pinned if the state is on a GPU), kept between checkpoints.

    Args:
        run: the run directory, on a disk that all ranks share, or in an object store.
        keep: number of newest checkpoints to keep, beside the best one.
        timeout: of a collective: all ranks wait while rank 0 verifies a checkpoint; None: PyTorch's 30 minutes.
    """

    def __init__(self, run: AnyPath, *, keep: int, timeout: timedelta | None = None) -> None:
        self._run, self._keep = run, keep
        self._group = host_group(timeout) if dist.is_initialized() else None
        self._buffers: State = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._snapshot = Snapshot()
        self._waited = 0.0
        self.timing: WriteTiming | None = None
        """Times of the last written checkpoint."""

    def newest_valid(self) -> tuple[AnyPath | None, list[str]]:
        """See `checkpoint.newest_valid`."""
        self.wait()
        return checkpoint.newest_valid(self._run, group=self._group)

    def set_aside(self, step: int) -> list[AnyPath]:
        """See `checkpoint.set_aside`."""
        return checkpoint.set_aside(self._run, step, group=self._group)

    def reserve(self, state: State) -> None:
        """Allocate the memory for a copy now, so that a lack of memory is found before the first step."""
        copied(state, self._buffer)

    def save(self, state: State, progress: Progress) -> None:
        """Start copying and writing the state, after the previous one is written; every rank must call it.

        Args:
            state: as for `checkpoint.save`; row shards may change after `wait_until_copied`, the rest at once.
            progress: as for `checkpoint.save`.

        Raises:
            CheckpointError: the previous one could not be written.
        """
        start = time.perf_counter()
        self.wait()
        work = (self._snapshot.start(state, self._buffer), copy.deepcopy(progress))
        # A daemon: a worker that fails must be able to end while a write waits for ranks that are gone.
        self._thread = threading.Thread(target=self._write, args=work, daemon=True, name="checkpoint")
        self._thread.start()
        self._waited = time.perf_counter() - start

    def wait_until_copied(self, rows: torch.Tensor | None = None) -> None:
        """See `Snapshot.wait_until_copied`."""
        self._snapshot.wait_until_copied(rows)

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Block until nothing is being written.

        Raises:
            CheckpointError: the last one could not be written.
            RuntimeError: the ranks lost their connection meanwhile.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, CheckpointError):
            raise error
        if error is not None:  # an error that the ranks did not agree on, for example because one is gone
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            kind = RuntimeError if isinstance(error, RuntimeError) else CheckpointError
            raise kind(f"checkpoint of {self._run} could not be written: {reason}") from error

    def _write(self, state: State, progress: Progress) -> None:
        start = time.perf_counter()
        try:
            self._snapshot.run()
            copied_after = time.perf_counter() - start
            checkpoint.save(self._run, state, progress, keep=self._keep, group=self._group)
            seconds = time.perf_counter() - start
            self.timing = WriteTiming(
                step=progress.step,
                wait_seconds=self._waited + self._snapshot.waited,
                copy_seconds=copied_after,
                write_seconds=seconds,
            )
        except BaseException as error:  # raised again in the training thread
            self._error = error

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return host memory for a copy; that of an earlier checkpoint is reused if it fits."""
        local, buffer = plain(tensor), self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = self._buffers[name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
        return buffer
