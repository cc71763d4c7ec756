"""TorchTrainer as rayface runs it: without Ray Train's parts that a training does not use, or that do not work here."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer

from rayface.ray_internals.train import (
    DatasetsCallback,
    FixedScalingPolicy,
    NCCLRASCallback,
    PlacementGroupCleanerCallback,
    TrainController,
)
from rayface.session import started_here
from rayface.training.controller import LocalScalingPolicy

# The cleaner asks the dashboard of the Ray that it finds on this machine (Ray 2.60). It dies where that is none or
# several, and where it is another one it takes a live controller for a dead one: placement groups of killed controllers
# are left to `remove_orphaned_placement_groups`. The second starts an actor for Ray Datasets, of which there are none.
# The third is there if RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR=1; rayface has its own, `NcclHangs`.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback, NCCLRASCallback)


class Trainer(TorchTrainer):
    """A TorchTrainer of few processes, each of which takes 1 to 2 s of CPU time to start."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each) not in _UNUSED]

    def _initialize_and_run_controller(self, **arguments: Any) -> ray.train.Result:
        """On a local Ray the controller has no environment of its own, so that it takes a process that waits."""
        if not started_here():
            return super()._initialize_and_run_controller(**arguments)
        policy = arguments["scaling_policy"]
        if type(policy) is FixedScalingPolicy:
            arguments["scaling_policy"] = LocalScalingPolicy(policy.scaling_config)
        controller = ray.remote(num_cpus=0)(TrainController).remote(**arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
