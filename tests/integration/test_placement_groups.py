"""Placement groups of a run whose controller was killed are removed; those of others stay."""

import time
from typing import Any

import pytest
import ray
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import placement_group_table, remove_placement_group

from rayface.training.ray_trainer import Trainer
from rayface.training.recovery.placement_groups import remove_orphaned_placement_groups

pytestmark = pytest.mark.usefixtures("local_ray")


def actor(name: str) -> Any:
    """A running actor of a class of that name."""

    def hold(self: Any) -> Any:
        group = ray.util.placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group

    return ray.remote(num_cpus=0)(type(name, (), {"hold": hold})).remote()


def state_of(group: Any) -> str:
    return str(placement_group_table(group)["state"])


def test_remove_orphaned_placement_groups_removes_those_of_dead_controllers_only():
    dead, dead_other, live = actor("TrainController"), actor("Other"), actor("TrainController")
    orphaned, kept, used = ray.get([dead.hold.remote(), dead_other.hold.remote(), live.hold.remote()])
    own = ray.util.placement_group([{"CPU": 1}])
    ray.get(own.ready())
    remove_orphaned_placement_groups()
    assert [state_of(group) for group in (orphaned, kept, used, own)] == ["CREATED"] * 4
    for killed in (dead_other, dead):  # the one whose group is kept first
        ray.kill(killed)
    for _ in range(400):  # Ray takes a moment to see that an actor is dead
        remove_orphaned_placement_groups()
        if state_of(orphaned) == "REMOVED":
            break
        time.sleep(0.05)
    assert [state_of(group) for group in (orphaned, kept, used, own)] == ["REMOVED", *["CREATED"] * 3]
    for group in (kept, used, own):
        remove_placement_group(group)


def test_run_without_a_dashboard_starts_no_placement_group_cleaner():
    callbacks = Trainer(lambda: None)._create_default_callbacks()
    assert callbacks
    assert not any(isinstance(callback, PlacementGroupCleanerCallback) for callback in callbacks)
