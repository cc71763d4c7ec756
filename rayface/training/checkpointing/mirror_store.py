"""Store of mirrored states: the memory of one process, outside the workers, which outlives them."""

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SLOTS = 2
"""States that a store holds of a rank: the last whole one, and the one that is being copied."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor is in a rank's part."""

    dtype: str
    """As torch names it, without "torch."."""
    shape: tuple[int, ...]
    offset: int
    """In bytes."""
    first_row: int | None
    """Of a row shard: its first row of the whole; None: all ranks have the tensor."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of a rank's part of a mirrored state."""

    step: int
    workers: int
    """Ranks that the state is of."""
    progress: str
    """The content of progress.json."""
    places: Mapping[str, Place]
    """By the names in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A whole part in a store."""

    rank: int
    slot: int
    part: Part
    node: str
    """Of the store."""
    path: str
    """Of the memory, for processes of that node."""
    size: int
    """Bytes."""


class Store(Protocol):
    """What ranks call of a `MirrorStore`, which is another process; every call may raise an error of the connection."""

    def begin(self, rank: int, slot: int, size: int) -> str:
        """See `MirrorStore.begin`."""

    def write(self, rank: int, slot: int, offset: int, data: np.ndarray) -> None:
        """See `MirrorStore.write`."""

    def commit(self, rank: int, slot: int, part: Part) -> None:
        """See `MirrorStore.commit`."""

    def read(self, rank: int, slot: int, offset: int, size: int) -> bytes:
        """See `MirrorStore.read`."""

    def delivered(self) -> list[Delivered]:
        """See `MirrorStore.delivered`."""

    def discard_before(self, step: float) -> None:
        """See `MirrorStore.discard_before`."""


class Stores(Protocol):
    """How a rank reaches the stores of its run; every call may raise an error of the connection."""

    node: str
    """Of this rank."""

    def of(self, node: str) -> Store:
        """Return the store of a node."""

    def every(self) -> Sequence[Store]:
        """Return the stores of all nodes that are alive."""


class MirrorStore:
    """Holds parts of mirrored states in anonymous shared memory, which ends with this process, however it ends.

    Only processes of the same user can open the memory: by the path of this process's file descriptor.

    Args:
        node: this machine's name, for `Delivered`.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._memory: dict[tuple[int, int], tuple[int, int]] = {}  # rank and slot to file descriptor and size
        self._parts: dict[tuple[int, int], Part] = {}

    def begin(self, rank: int, slot: int, size: int) -> str:
        """Discard a slot of a rank, reserve its memory, and return the path that processes of this node map.

        Raises:
            OSError: there is no memory.
        """
        self._parts.pop((rank, slot), None)
        descriptor, reserved = self._memory.get((rank, slot), (-1, 0))
        if reserved != size:
            self._free(rank, slot)
            descriptor = os.memfd_create(f"rayface-mirror-{rank}-{slot}", os.MFD_CLOEXEC)
            self._memory[rank, slot] = (descriptor, size)
            os.posix_fallocate(descriptor, 0, max(1, size))
        return _path(descriptor)

    def write(self, rank: int, slot: int, offset: int, data: np.ndarray) -> None:
        """Write bytes (n,), uint8, of another node; they are in Ray's object store until this returns."""
        view = data.data
        while view:
            count = os.pwrite(self._memory[rank, slot][0], view, offset)
            view, offset = view[count:], offset + count

    def commit(self, rank: int, slot: int, part: Part) -> None:
        """Record that a slot is whole."""
        self._parts[rank, slot] = part

    def read(self, rank: int, slot: int, offset: int, size: int) -> bytes:
        """Return bytes for another node."""
        return os.pread(self._memory[rank, slot][0], size, offset)

    def delivered(self) -> list[Delivered]:
        """Return the whole parts."""
        found = []
        for (rank, slot), part in list(self._parts.items()):  # others may call meanwhile
            descriptor, size = self._memory[rank, slot]
            path = _path(descriptor)
            found.append(Delivered(rank=rank, slot=slot, part=part, node=self._node, path=path, size=size))
        return found

    def discard_before(self, step: float) -> None:
        """Discard the parts of earlier steps, and give their memory back."""
        for rank, slot in [key for key, part in list(self._parts.items()) if part.step < step]:
            del self._parts[rank, slot]
            self._free(rank, slot)

    def _free(self, rank: int, slot: int) -> None:
        descriptor, _ = self._memory.pop((rank, slot), (-1, 0))  # who has mapped it keeps it
        if descriptor >= 0:
            os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def mapped(path: str, size: int) -> mmap.mmap:
    """Map the memory of a slot into this process.

    Raises:
        OSError: the store is gone, or is another user's.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, max(1, size))
    finally:
        os.close(descriptor)


def newest_whole(delivered: Sequence[Delivered]) -> dict[int, list[Delivered]] | None:
    """Return the newest state of which every rank's part is there: its copies by rank; None without one."""
    states: dict[tuple[int, int], dict[int, list[Delivered]]] = {}
    for one in delivered:
        states.setdefault((one.part.step, one.part.workers), {}).setdefault(one.rank, []).append(one)
    whole = [state for state, parts in states.items() if len(parts) == state[1]]
    return states[max(whole)] if whole else None
