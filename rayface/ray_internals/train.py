"""Ray Train's private classes, and others that a training needs."""

from types import ModuleType
from typing import Any

import ray

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    import psutil  # Ray holds a copy and puts it on the path
    from ray._private.state import state as global_state
    from ray._private.thirdparty import pynvml
    from ray.train._internal.utils import get_address_and_port
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.nccl_ras import NCCLRASCallback, RASReport
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.constants import (
        NCCL_RAS_ACTION_ENV_VAR,
        NCCL_RAS_ACTION_OBSERVE,
        NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR,
        WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    )
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.controller import TrainController
    from ray.train.v2._internal.execution.controller.state import (
        InitializingState,
        ReschedulingState,
        RestartingState,
        SchedulingState,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import state as worker_group_state
    from ray.train.v2._internal.execution.worker_group import worker_group
    from ray.train.v2._internal.util import TrainingFramework

__all__ = [
    "NCCL_RAS_ACTION_ENV_VAR",
    "NCCL_RAS_ACTION_OBSERVE",
    "NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR",
    "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    "ControllerCallback",
    "DatasetsCallback",
    "FixedScalingPolicy",
    "InitializingState",
    "NCCLRASCallback",
    "PlacementGroupCleanerCallback",
    "RASReport",
    "ReschedulingState",
    "RestartingState",
    "SchedulingState",
    "TrainController",
    "TrainingFramework",
    "WorkerGroupCallback",
    "WorkerGroupStartupTimeoutError",
    "get_address_and_port",
    "global_state",
    "psutil",
    "pynvml",
    "torch_process_group",
    "without_synchronization",
]


def torch_process_group() -> ModuleType:
    """Return Ray Train's module of functions for a process group; it imports PyTorch, so it is not imported above."""
    from ray.train.torch import config

    return config


class _NoSynchronization:
    """In place of the class and of the handle of Ray Train's SynchronizationActor."""

    def __init__(self) -> None:
        self.reset = self.set_required_ranks = _Done()
        self.broadcast_from_rank_zero = _Refused()

    def options(self, **_options: Any) -> "_NoSynchronization":
        return self

    def remote(self, **_arguments: Any) -> "_NoSynchronization":
        return self


class _Done:
    def remote(self, *_arguments: Any) -> ray.ObjectRef:
        return ray.put(True)


class _Refused:
    def remote(self, **_arguments: Any) -> ray.ObjectRef:
        raise RuntimeError("ray.train.report and ray.train.collective: do not work in rayface's workers: use PyTorch's")


def without_synchronization() -> None:
    """Have worker groups that are started in this process, a controller, do without an actor.

    Workers meet there in `ray.train.report` and `ray.train.collective`, which rayface does not call. Waiting, it takes
    1 % of a core (Ray 2.60).
    """
    worker_group.SynchronizationActor = _NoSynchronization()
    worker_group_state._shutdown_sync_actor = lambda _: None
