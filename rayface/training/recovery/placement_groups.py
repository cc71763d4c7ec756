"""Release the CPUs and GPUs of workers whose Ray Train controller was killed."""

from typing import Any

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rayface.ray_internals.train import TrainController, global_state


def remove_orphaned_placement_groups() -> None:
    """Remove placement groups of this job whose Ray Train controller is dead.

    Ray keeps the placement group of a dead actor until its job ends, so a restarted trial of a sweep would wait
    forever for the CPUs of its former workers.
    """
    job = ray.get_runtime_context().get_job_id()
    for data in global_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(data)
        if group.state != PlacementGroupTableData.REMOVED and group.creator_job_id.hex() == job and _orphaned(group):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _orphaned(group: Any) -> bool:
    """Return whether the group was created by a controller that is dead; a driver also appears as a dead actor."""
    if not group.creator_actor_dead or ray.ActorID(group.creator_actor_id).is_nil():
        return False
    return bool(
        global_state.actor_table(group.creator_actor_id.hex()).get("ActorClassName") == TrainController.__name__
    )
