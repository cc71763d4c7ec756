"""A mirrored state read by other numbers of ranks; its parts lie in memory of this process."""

import json
from dataclasses import replace

import pytest
import torch

from rayface.models.row_shard import RowShard
from rayface.training.checkpointing import mirror, mirrored_state
from rayface.training.checkpointing.mirror_store import Delivered, MirrorStore, Part, Place, mapped
from rayface.training.checkpointing.mirrored_state import MirroredState, view
from rayface.training.checkpointing.progress import Progress
from rayface.training.distributed import World

CENTERS = torch.arange(14.0).view(7, 2)
EDGES = (0, 4, 7)  # of two ranks


class StoresOf:
    """Stores by node, some of them lost."""

    def __init__(self, node: str, **stores: MirrorStore) -> None:
        self.node, self._stores = node, stores

    def of(self, node: str) -> MirrorStore:
        return self._stores[node]

    def every(self) -> list[MirrorStore]:
        return list(self._stores.values())


def deliver(store: MirrorStore, rank: int, step: int = 5) -> Delivered:
    """The part of one of two ranks: its rows of the class centers, a weight of all, a statistic of its own."""
    rows = CENTERS[EDGES[rank] : EDGES[rank + 1]]
    tensors = {"head.centers": rows, "backbone.w": torch.full((3,), 7.0), "backbone.mean": torch.tensor([float(rank)])}
    places, offset = {}, 0
    for name, tensor in tensors.items():
        first = EDGES[rank] if name == "head.centers" else None
        places[name] = Place(dtype="float32", shape=tuple(tensor.shape), offset=offset, first_row=first)
        offset += tensor.nbytes
    memory = torch.frombuffer(mapped(store.begin(rank, 0, offset), offset), dtype=torch.uint8)
    for name, tensor in tensors.items():
        view(memory, places[name]).copy_(tensor)
    store.commit(rank, 0, Part(step=step, workers=2, progress=json.dumps(Progress(step=step).as_dict()), places=places))
    return next(one for one in store.delivered() if one.rank == rank)


def world(rank: int, size: int) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


@pytest.fixture
def store() -> MirrorStore:
    return MirrorStore("here")


def test_state_read_by_as_many_ranks_takes_the_own_part_only(store):
    copies = {rank: [deliver(store, rank)] for rank in (0, 1)}
    state = MirroredState.read(copies, StoresOf("here"), world(1, 2))
    assert (set(state.parts), state.step) == ({1}, 5)
    mean, rows = torch.zeros(1), torch.zeros(3, 2)
    progress = state.load({"backbone.mean": mean, "head.centers": RowShard.of(rows, 4, 7)})
    assert progress == Progress(step=5)
    assert mean.item() == 1
    assert torch.equal(rows, CENTERS[4:])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_state_read_by_another_number_of_ranks_gives_each_its_rows(store, size):
    copies = {rank: [deliver(store, rank)] for rank in (0, 1)}
    for rank in range(size):
        state = MirroredState.read(copies, StoresOf("here", here=store), world(rank, size))
        first, last = rank * 7 // size, (rank + 1) * 7 // size
        weight, rows = torch.zeros(3), torch.full((last - first, 2), torch.nan)
        state.load({"backbone.w": weight, "head.centers": RowShard.of(rows, first, 7)})
        assert weight.tolist() == [7, 7, 7]
        assert torch.equal(rows, CENTERS[first:last])


def test_empty_like_of_a_prefix_has_the_shapes_that_were_mirrored(store):
    copies = {rank: [deliver(store, rank)] for rank in (0, 1)}
    state = MirroredState.read(copies, StoresOf("here", here=store), world(0, 2))
    found = state.empty_like("backbone.")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"backbone.w": (3,), "backbone.mean": (1,)}
    assert state.by_name(torch.nn.Linear(1, 1), found) is found


def test_empty_like_of_generators_and_counters_has_their_types():
    tensors = {"rng.0.torch": torch.arange(5, dtype=torch.uint8), "rng.0.count": torch.tensor(3), "w": torch.ones(1)}
    places, size = mirror._layout(tensors)
    memory = torch.zeros(size, dtype=torch.uint8)
    for name, tensor in tensors.items():
        view(memory, places[name]).copy_(tensor)
    part = Part(step=1, workers=1, progress=json.dumps(Progress(step=1).as_dict()), places=places)
    state = MirroredState({0: (part, memory)}, own=0)
    found = state.empty_like("rng.")
    state.load(found)
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in found.items()} == {
        "rng.0.torch": (torch.uint8, [0, 1, 2, 3, 4]),
        "rng.0.count": (torch.int64, 3),
    }


def test_part_of_another_node_is_fetched_in_pieces(store, monkeypatch):
    monkeypatch.setattr(mirrored_state, "SENT_BYTES", 7)
    copies = {rank: [deliver(store, rank)] for rank in (0, 1)}
    state = MirroredState.read(copies, StoresOf("elsewhere", here=store), world(0, 1))
    rows = torch.zeros(7, 2)
    state.load({"head.centers": RowShard.of(rows, 0, 7)})
    assert torch.equal(rows, CENTERS)


def test_part_whose_first_node_is_gone_is_fetched_from_the_next(store):
    whole = deliver(store, 0), deliver(store, 1)
    copies = {one.rank: [replace(one, node="gone"), one] for one in whole}
    state = MirroredState.read(copies, StoresOf("elsewhere", here=store), world(0, 2))
    assert state.step == 5


def test_part_of_which_no_copy_can_be_read_raises(store):
    copies = {rank: [replace(deliver(store, rank), node="gone")] for rank in (0, 1)}
    with pytest.raises(KeyError, match="gone"):
        MirroredState.read(copies, StoresOf("elsewhere", here=store), world(0, 2))
    with pytest.raises(OSError, match="no copy"):
        MirroredState.read({0: []}, StoresOf("elsewhere", here=store), world(0, 1))
