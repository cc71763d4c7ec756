"""Stores of mirrored states as Ray actors, one a node, owned by the process that starts them."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import ray
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayface.training.checkpointing.mirror_store import Delivered, MirrorStore, Part, Store

_ANSWER_SECONDS = 60.0
_START_SECONDS = 60.0
_POLL_SECONDS = 0.1


def start_stores(run: str, nodes: Iterable[str]) -> list[ray.actor.ActorHandle]:
    """Start the stores of a run on nodes that have none; return their handles, without which they end.

    Args:
        run: name of the run, the same for all its workers.
        nodes: by their ids.
    """
    handles = []
    for node in set(nodes):
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(num_cpus=0, name=_prefix(run) + node, get_if_exists=True, scheduling_strategy=here)
        handles.append(actor(MirrorStore).remote(node))
    return handles


class ActorStores:
    """The stores that `start_stores` has started for a run; see `mirror_store.Stores`."""

    def __init__(self, run: str) -> None:
        self._prefix = _prefix(run)
        self.node: str = ray.get_runtime_context().get_node_id()

    def of(self, node: str) -> Store:
        """Return the store of a node, once it is started.

        Raises:
            ValueError: there is none.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return _ActorStore(ray.get_actor(self._prefix + node))
            except ValueError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def every(self) -> Sequence[Store]:
        """Return the stores of all nodes that are alive."""
        found = []
        for name in list_named_actors():
            if name.startswith(self._prefix):
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    found.append(_ActorStore(ray.get_actor(name)))
        return found


class _ActorStore:
    """Calls a store and waits for its answer; raises RayError if there is none."""

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        self._actor = actor

    def begin(self, rank: int, slot: int, size: int) -> str:
        return str(self._answer("begin", rank, slot, size))

    def write(self, rank: int, slot: int, offset: int, data: np.ndarray) -> None:
        self._answer("write", rank, slot, offset, data)

    def commit(self, rank: int, slot: int, part: Part) -> None:
        self._answer("commit", rank, slot, part)

    def read(self, rank: int, slot: int, offset: int, size: int) -> bytes:
        return bytes(self._answer("read", rank, slot, offset, size))

    def delivered(self) -> list[Delivered]:
        return list(self._answer("delivered"))

    def discard_before(self, step: float) -> None:
        self._answer("discard_before", step)

    def _answer(self, method: str, *arguments: object) -> Any:
        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=_ANSWER_SECONDS)


def _prefix(run: str) -> str:
    return f"rayface-mirror-{run}-"
