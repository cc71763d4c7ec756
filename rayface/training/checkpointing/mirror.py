"""Mirror of the state: every rank's part in the memory of a store outside the workers, and in a neighbour's."""

import json
import logging
import math
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from rayface.models.row_shard import RowShard
from rayface.training.checkpointing.checkpoint import State
from rayface.training.checkpointing.mirror_store import (
    SLOTS,
    Delivered,
    Part,
    Place,
    Store,
    Stores,
    mapped,
    newest_whole,
)
from rayface.training.checkpointing.mirrored_state import SENT_BYTES, Copies, MirroredState, view
from rayface.training.checkpointing.page_locked import page_lock
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.snapshot import Snapshot, plain
from rayface.training.distributed import World, host_group

T = TypeVar("T")
_ALIGNMENT = 64  # bytes
logger = logging.getLogger(__name__)


class Mirror:
    """Mirrors the state every few steps, while training continues; every rank has one mirror.

    A rank copies its part into the memory of its node's store, as a checkpoint is copied (see `Snapshot`). A thread
    completes the copy and, where there are several nodes, sends it to the store of the next one. A state counts when
    all ranks have told each other that their parts are delivered; only then is the one before it overwritten. If any
    of that fails, the mirror is turned off, and training goes on.

    Memory: two parts of a rank in the store of its node; where there are several nodes, two in the next one's.

    Args:
        stores: None: there are none, and every method does nothing.
        every: steps between mirrored states; 0: none.
        on_failure: called once, with the reason, when the mirror is turned off.
        timeout: of a collective: a rank may wait for another one's slow work; None: PyTorch's 30 minutes.
    """

    def __init__(
        self,
        world: World,
        stores: Stores | None,
        every: int,
        *,
        on_failure: Callable[[str], None],
        timeout: timedelta | None = None,
    ) -> None:
        self._world, self._every, self._on_failure = world, every, on_failure
        self._stores = stores if every else None
        self._group = host_group(timeout) if self._stores is not None and world.size > 1 else None
        self._nodes = self._gather(self._stores.node) if self._stores is not None else []
        self._targets: list[Store] = []
        self._slot, self._is_first, self._warned = 0, True, False
        self._maps: dict[int, tuple[tuple[str, int, int], torch.Tensor]] = {}
        self._thread: threading.Thread | None = None
        self._snapshot = Snapshot()
        self.wait_until_copied = self._snapshot.wait_until_copied
        self._failure: str | None = None  # the same on all ranks

    def due(self, step: int) -> bool:
        """Return whether the state of a step is to be mirrored; the same on all ranks."""
        return self._stores is not None and step % self._every == 0

    def save(self, state: State, progress: Progress) -> None:
        """Start to mirror a state, after the previous one is delivered; every rank must call it where it is due.

        Args:
            state: row shards may change after `wait_until_copied`, the rest at once.
        """
        self.wait()
        if self._failure is not None:
            self._stores = None
            self._on_failure(f"the mirror is off, restarts begin at checkpoints: {self._failure}")
            return
        places, size = _layout(state)
        text = json.dumps(progress.as_dict())
        part = Part(step=progress.step, workers=self._world.size, progress=text, places=places)
        memory, failure = _attempt(lambda: self._reserve(size))
        if memory is not None:
            self._snapshot.start(state, lambda name, tensor: view(memory, places[name]))
        work = (part, memory, failure)
        self._thread = threading.Thread(target=self._deliver, args=work, daemon=True, name="mirror")
        self._thread.start()

    def wait(self) -> None:
        """Block until the last state is delivered."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest(self, least_step: float) -> MirroredState | None:
        """Return the newest mirrored state, if it is of `least_step` (rank 0's counts) or later; the same on all ranks.

        None also where a rank cannot read it. Runs two collectives.
        """
        if self._stores is None:
            return None
        box: list[Copies | None] = [None]
        if self._world.rank == 0:
            box[0], _ = _attempt(lambda: self._find(least_step))
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        copies = box[0]
        if copies is None:
            return None
        stores, world = self._stores, self._world
        found, failure = _attempt(lambda: MirroredState.read(copies, stores, world))
        self._slot = (copies[world.rank % len(copies)][0].slot + 1) % SLOTS  # that one stays until the next is whole
        return found if self._first_failure(failure) is None else None

    def clear(self) -> None:
        """Discard all mirrored states, as after a roll-back to an earlier checkpoint; every rank must call it."""
        if self._stores is None:
            return
        self.wait()
        failure = None
        if self._world.rank == 0:
            failure = self._discard_before(math.inf)
        self._failure = self._first_failure(failure)

    def _find(self, least_step: float) -> Copies | None:
        assert self._stores is not None
        delivered: list[Delivered] = []
        for store in self._stores.every():
            answer, _ = _attempt(store.delivered)  # its node may be gone
            delivered += answer or []
        copies = newest_whole(delivered)
        return copies if copies is not None and copies[0][0].part.step >= least_step else None

    def _discard_before(self, step: float) -> str | None:
        """Discard older parts in every store; return what failed in the first of the stores where something did."""
        assert self._stores is not None
        stores = self._stores.every()
        failures = [_attempt(partial(store.discard_before, step))[1] for store in stores]
        return next((failure for failure in failures if failure is not None), None)

    def _reserve(self, size: int) -> torch.Tensor:
        """Return the memory of the slot to copy into, which no longer counts as whole in any store."""
        self._targets = self._targets or self._find_targets()
        path, *_ = [store.begin(self._world.rank, self._slot, size) for store in self._targets]
        key = (path, os.stat(path).st_ino, size)
        if self._slot not in self._maps or self._maps[self._slot][0] != key:
            memory = torch.frombuffer(mapped(path, size), dtype=torch.uint8)
            if self._world.device.type == "cuda" and not page_lock(memory, self._world.device) and not self._warned:
                self._warned = True
                logger.warning(
                    "mirror: %d bytes cannot be page-locked, so training waits for the copy of every mirrored state: "
                    "raise the node's limit of locked memory (ulimit -l), or train.mirror_every",
                    size,
                )
            self._maps[self._slot] = (key, memory)
        return self._maps[self._slot][1]

    def _find_targets(self) -> list[Store]:
        """Return the store of this node and, if there are several nodes, that of the next one."""
        assert self._stores is not None
        own, nodes = self._stores.node, sorted(set(self._nodes))
        after = nodes[(nodes.index(own) + 1) % len(nodes)]
        return [self._stores.of(node) for node in dict.fromkeys([own, after])]

    def _deliver(self, part: Part, memory: torch.Tensor | None, failure: str | None) -> None:
        if memory is not None:
            self._snapshot.run()
            _, failure = _attempt(lambda: self._send(part, memory))
        try:
            self._failure = self._first_failure(failure)
        except RuntimeError as error:  # a rank is gone, so these workers end
            self._failure = str(error)
        if self._failure is not None:
            return
        self._slot = (self._slot + 1) % SLOTS
        if self._is_first and self._world.rank == 0:
            self._discard_before(part.step)  # what other ranks, elsewhere, have left
        self._is_first = False

    def _send(self, part: Part, memory: torch.Tensor) -> None:
        rank, slot = self._world.rank, self._slot
        local, *others = self._targets
        local.commit(rank, slot, part)
        for store in others:
            for offset in range(0, len(memory), SENT_BYTES):
                # an array over the memory: Ray copies it once, without holding the interpreter's lock
                store.write(rank, slot, offset, memory[offset : offset + SENT_BYTES].numpy())
            store.commit(rank, slot, part)

    def _first_failure(self, failure: str | None) -> str | None:
        """Return what failed on the first of the ranks where something did; the same on all; one gather."""
        failures = enumerate(self._gather(failure))
        return next((f"rank {rank}: {text}" for rank, text in failures if text is not None), None)

    def _gather(self, value: T) -> list[T]:
        if self._group is None:
            return [value]
        values = [value] * self._world.size
        dist.all_gather_object(values, value, group=self._group)
        return values


def _layout(state: State) -> tuple[dict[str, Place], int]:
    """Return where each tensor goes, and the bytes of all."""
    places, end = {}, 0
    for name, tensor in state.items():
        local = plain(tensor)
        first = tensor.first_row if isinstance(tensor, RowShard) else None
        dtype = str(local.dtype).removeprefix("torch.")
        places[name] = Place(dtype=dtype, shape=tuple(local.shape), offset=end, first_row=first)
        end += -(-local.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, max(end, 1)


def _attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return an action's result, or why it failed: nothing that fails of a mirror shall end the training."""
    try:
        return action(), None
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
