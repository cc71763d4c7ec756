"""The state of a run as tensors: backbone, head, optimizer and random number generators."""

import json
import random
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from rayface.models.row_shard import RowShard
from rayface.storage import AnyPath
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.checkpoint import State
from rayface.training.checkpointing.optimizer_state import by_name, load_optimizer_state, optimizer_state
from rayface.training.checkpointing.progress import Progress
from rayface.training.distributed import World
from rayface.training.trained import AVERAGE, Trained

# bf16 needs no loss scaling, so there is no scaler to save.


def whole_state(trained: Trained, world: World) -> State:
    """Return the live tensors by their names in a checkpoint."""
    return {
        **_weights(trained),
        **optimizer_state(trained.optimizer, trained.backbone),
        **rng_tensors(world.rank, world.device),
    }


class SavedState(Protocol):
    """A state that was saved by any number of ranks."""

    def empty_like(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return empty tensors of the shapes saved under `prefix`, for state that does not exist before loading."""

    def load(self, state: State) -> Progress:
        """Fill the tensors of `state`; return its progress."""

    def by_name(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the optimizer's tensors by parameter name; see `optimizer_state.by_name`."""


@dataclass(frozen=True)
class CheckpointFolder:
    """The state in a checkpoint; see `SavedState`."""

    path: AnyPath

    def empty_like(self, prefix: str) -> dict[str, torch.Tensor]:
        return checkpoint.empty_like_saved(self.path, prefix)

    def load(self, state: State) -> Progress:
        return checkpoint.load(self.path, state)

    def by_name(self, module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return by_name(self.path, module, tensors)


def load_state(saved: SavedState, trained: Trained, world: World) -> Progress:
    """Load a state saved by any number of ranks; return its progress.

    Raises:
        ValueError: the optimizer state belongs to another backbone.
    """
    backbone, head = trained.backbone, trained.head
    moments, rng = saved.empty_like("optimizer."), saved.empty_like(f"rng.{world.rank}.")
    progress = saved.load({**_weights(trained), **moments, **rng})
    load_optimizer_state(trained.optimizer, backbone, saved.by_name(backbone, moments))
    head.load_state({**head.state(), **progress.head})
    load_rng(rng, world.device)
    return progress


def _weights(trained: Trained) -> State:
    head, average = trained.head, trained.average
    state: State = {f"backbone.{name}": tensor for name, tensor in trained.backbone.state_dict().items()}
    if average is not None:
        state |= {f"{AVERAGE}.{name}": tensor for name, tensor in average.module.state_dict().items()}
        state[f"{AVERAGE}_steps"] = average.n_averaged
    first, _, num_classes = head.row_range
    rows = {f"head.{name}": RowShard.of(tensor, first, num_classes) for name, tensor in head.row_tensors().items()}
    replicated = {f"head.{name}": tensor for name, tensor in head.replicated_tensors().items()}
    return {**state, **rows, **replicated}


def rng_tensors(rank: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of this rank's random generators, {"rng.RANK.KIND": uint8}.

    Training itself depends only on (seed, step); these serve other code that uses the generators.
    """
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _packed([*map(_plain, np.random.get_state(legacy=True))]),
        "python": _packed(random.getstate()),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {f"rng.{rank}.{kind}": state for kind, state in states.items()}


def load_rng(tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `rng_tensors` returned."""
    states = {name.split(".")[2]: state for name, state in tensors.items()}
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "numpy" in states:
        name, keys, *rest = _unpacked(states["numpy"])
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
    if "python" in states:
        version, inner, gauss = _unpacked(states["python"])
        random.setstate((version, tuple(inner), gauss))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _packed(state: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def _unpacked(state: torch.Tensor) -> Any:
    return json.loads(bytes(state.tolist()))
