"""A mirrored state that is read back, by any number of ranks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from rayface.models.row_shard import RowShard
from rayface.training.checkpointing.checkpoint import State
from rayface.training.checkpointing.mirror_store import Delivered, Part, Place, Stores, mapped
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.snapshot import plain
from rayface.training.distributed import World

SENT_BYTES = 32 * 2**20
"""At once between nodes, so that Ray's object store needs no room for a whole part."""

Copies = Mapping[int, list[Delivered]]
"""The copies of every rank's part."""


@dataclass(frozen=True)
class MirroredState:
    """The parts of a mirrored state that a rank needs; see `state.SavedState`.

    Without row shards a rank takes its own part, so that what is of each rank (batch-norm statistics) comes back too;
    a rank that the state was not of takes another one's.
    """

    parts: Mapping[int, tuple[Part, torch.Tensor]]
    own: int

    @classmethod
    def read(cls, copies: Copies, stores: Stores, world: World) -> Self:
        """Map the parts of this node into memory, and fetch those of others.

        Raises:
            OSError, Exception: of the connection; no copy of a part can be read.
        """
        own = world.rank % len(copies)
        needed = [own] if len(copies) == world.size else sorted(copies)
        return cls({rank: _read_one(copies[rank], stores) for rank in needed}, own)

    @property
    def step(self) -> int:
        return self.parts[self.own][0].step

    def empty_like(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return empty tensors of the shapes saved under `prefix`, for state that does not exist before loading."""
        places = self.parts[self.own][0].places
        return {
            name: torch.empty(place.shape, dtype=getattr(torch, place.dtype))
            for name, place in places.items()
            if name.startswith(prefix)
        }

    def load(self, state: State) -> Progress:
        """Fill the tensors of `state`; return its progress."""
        part, memory = self.parts[self.own]
        for name, tensor in state.items():
            if isinstance(tensor, RowShard):
                self._load_rows(name, tensor)
            else:
                tensor.copy_(view(memory, part.places[name]))
        return Progress.from_dict(json.loads(part.progress))

    def by_name(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the optimizer's tensors by parameter name, as they are mirrored."""
        return tensors

    def _load_rows(self, name: str, shard: RowShard) -> None:
        local = plain(shard)
        first, end = shard.first_row, shard.first_row + len(local)
        for part, memory in self.parts.values():
            place = part.places[name]
            saved = place.first_row or 0
            start, stop = max(first, saved), min(end, saved + place.shape[0])
            if start < stop:
                local[start - first : stop - first].copy_(view(memory, place)[start - saved : stop - saved])


def view(memory: torch.Tensor, place: Place) -> torch.Tensor:
    """Return a tensor over its place in a part's memory."""
    dtype = getattr(torch, place.dtype)
    count = dtype.itemsize
    for length in place.shape:
        count *= length
    return memory[place.offset : place.offset + count].view(dtype).view(place.shape)


def _read_one(copies: list[Delivered], stores: Stores) -> tuple[Part, torch.Tensor]:
    """Read the copy of this node if there is one, else fetch another."""
    for copy in copies:
        if copy.node == stores.node:
            return copy.part, torch.frombuffer(mapped(copy.path, copy.size), dtype=torch.uint8)
    error: Exception | None = None
    for copy in copies:
        try:
            store = stores.of(copy.node)
            offsets = range(0, copy.size, SENT_BYTES)
            data = b"".join(store.read(copy.rank, copy.slot, at, min(SENT_BYTES, copy.size - at)) for at in offsets)
            return copy.part, torch.frombuffer(bytearray(data), dtype=torch.uint8)
        except Exception as failed:  # that node may be gone, another has a copy
            error = failed
    raise error or OSError("no copy")
