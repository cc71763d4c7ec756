"""Private classes of Ray that rayface depends on; no other module imports them.

Tested with Ray 2.60. Ray may move or change these classes in any release, so pyproject.toml pins the tested versions;
test a new release with tests/training/recovery, tests/data/streaming and `make faults`.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import ray

TRIED_VERSIONS = ("2.60",)

try:
    import psutil  # Ray holds a copy and puts it on the path
    from ray._private.parameter import RayParams
    from ray._private.state import state as global_state
    from ray._private.thirdparty import pynvml
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler.base_cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.interfaces import ExecutionResources
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
    from ray.train.v2._internal.util import TrainingFramework
except ImportError as error:
    raise ImportError(
        f"ray {ray.__version__}: must be {' or '.join(TRIED_VERSIONS)}, which rayface was tried with: {error}; "
        f"install it with: pip install 'ray[data,default,train,tune]=={TRIED_VERSIONS[-1]}.*'"
    ) from error

__all__ = [
    "NCCL_RAS_ACTION_ENV_VAR",
    "NCCL_RAS_ACTION_OBSERVE",
    "NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR",
    "TRIED_VERSIONS",
    "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    "ControllerCallback",
    "DatasetsCallback",
    "ExecutionCallback",
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
    "execute_data_locally",
    "get_address_and_port",
    "global_state",
    "psutil",
    "pynvml",
    "started_nodes",
    "torch_process_group",
]


def torch_process_group() -> ModuleType:
    """Return Ray Train's module of functions for a process group; it imports PyTorch, so it is not imported above."""
    from ray.train.torch import config

    return config


class _WholeCluster(ClusterAutoscaler):
    """All resources there are, and no request for more."""

    def try_trigger_scaling(self) -> None:
        pass

    def on_executor_shutdown(self) -> None:
        pass

    def get_total_resources(self) -> ExecutionResources:
        return ExecutionResources.from_resource_dict(ray.cluster_resources())


def execute_data_locally() -> None:
    """Have Ray Data's executions in this process do without two actors: of its statistics and of its autoscaling.

    On a local Ray nobody looks at the former and the latter has nothing to do, but an execution waits for both to
    start, 1 s of CPU time each.
    """
    manager = stats._StatsManager
    manager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid.uuid4().hex)
    manager.register_dataset_to_stats_actor = staticmethod(_ignore)
    manager.update_execution_metrics = staticmethod(_ignore)
    streaming_executor.create_cluster_autoscaler = lambda *_args, **_options: _WholeCluster()


def _ignore(*_args: Any, **_options: Any) -> None:
    pass


@contextmanager
def started_nodes(*, worker: Path | None, log_monitor: bool = True, autoscaler: bool = True) -> Iterator[None]:
    """Change the nodes that this process starts inside the context.

    Args:
        worker: a script that they run in place of Ray's default_worker.py.
        log_monitor: have a process that sends the output of workers to drivers.
        autoscaler: have a process that asks for more nodes.
    """
    update_if_absent = RayParams.update_if_absent
    options: dict[str, object] = {"include_log_monitor": log_monitor}
    if worker is not None:
        options["worker_path"] = str(worker)

    def with_options(self: RayParams, **values: Any) -> None:
        self.no_monitor = not autoscaler
        update_if_absent(self, **options)
        update_if_absent(self, **values)

    with patch.object(RayParams, "update_if_absent", with_options):
        yield
