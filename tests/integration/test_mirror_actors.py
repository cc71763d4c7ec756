"""Stores of mirrored states as Ray actors."""

import numpy as np
import pytest
import ray

from rayface.training.checkpointing.mirror_actors import ActorStores, start_stores
from rayface.training.checkpointing.mirror_store import Part, mapped

pytestmark = pytest.mark.usefixtures("local_ray")


def test_stores_of_a_run_are_found_by_their_node_and_end_with_their_handles():
    stores = ActorStores("run")
    handles = start_stores("run", [stores.node, stores.node])
    again = start_stores("run", [stores.node])
    assert [handle._actor_id for handle in again] == [handle._actor_id for handle in handles]
    other = start_stores("other", [stores.node])
    store = stores.of(stores.node)
    mapped(store.begin(0, 1, 4), 4)[:] = b"abcd"
    store.write(0, 1, 2, np.frombuffer(b"xy", np.uint8))
    store.commit(0, 1, Part(step=3, workers=1, progress="{}", places={}))
    (found,) = [one for each in stores.every() for one in each.delivered()]
    assert (found.rank, found.slot, found.node, found.part.step) == (0, 1, stores.node, 3)
    assert store.read(0, 1, 0, 4) == mapped(found.path, 4)[:] == b"abxy"
    store.discard_before(4)
    assert store.delivered() == ActorStores("other").of(stores.node).delivered() == []
    for handle in (*handles, *other):
        ray.kill(handle)
    assert list(stores.every()) == []
