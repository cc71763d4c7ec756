"""Private classes of Ray that rayface depends on; no other module imports them.

Tested with Ray 2.60. Ray may move or change these classes in any release, so pyproject.toml pins the tested versions;
test a new release with tests/training/recovery, tests/data/streaming and `make faults`.
"""

import ray

TRIED_VERSIONS = ("2.60",)

try:
    from ray._private.state import state as global_state
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.controller import TrainController
    from ray.train.v2._internal.execution.controller.state import (
        InitializingState,
        ReschedulingState,
        RestartingState,
        SchedulingState,
    )
except ImportError as error:
    raise ImportError(
        f"ray {ray.__version__}: must be {' or '.join(TRIED_VERSIONS)}, which rayface was tried with: {error}; "
        f"install it with: pip install 'ray[data,default,train,tune]=={TRIED_VERSIONS[-1]}.*'"
    ) from error

__all__ = [
    "TRIED_VERSIONS",
    "WORKER_GROUP_START_TIMEOUT_S_ENV_VAR",
    "ControllerCallback",
    "ExecutionCallback",
    "InitializingState",
    "PlacementGroupCleanerCallback",
    "ReschedulingState",
    "RestartingState",
    "SchedulingState",
    "TrainController",
    "WorkerGroupCallback",
    "WorkerGroupStartupTimeoutError",
    "global_state",
]
