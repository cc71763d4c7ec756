"""Ray Data's private classes."""

import logging
import uuid
from typing import Any

import ray

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler.base_cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import metadata_fetcher, streaming_executor, streaming_executor_state
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.interfaces import ExecutionResources

__all__ = ["ExecutionCallback", "execute_data_locally", "log_no_debug_messages", "schedule_promptly"]

_LONGEST_WAIT = 0.02  # seconds, of a round of the scheduling loop for tasks that run


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


def schedule_promptly() -> None:
    """Have Ray Data's executions in this process pass on the output of each task as soon as it is there.

    Its loop waits until all running tasks have output, up to 0.1 s, and as long again for their metadata, which a
    thread fetches. With tasks of 0.3 s, 8 readers waited two thirds of their time (Ray 2.60).
    """
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = _LONGEST_WAIT
    metadata_fetcher._PREFETCH_ON_THREAD = False


def log_no_debug_messages() -> None:
    """Have Ray Data in this process write no debug messages into the log of Ray's session.

    There are some of every task, and of every execution each 5 s, in two files that nobody rotates: they grew by 280 MB
    a day while a small stream was read (Ray 2.60).
    """
    logging.getLogger("ray.data._internal").setLevel(logging.INFO)  # each task sets the level of ray.data again


def _ignore(*_args: Any, **_options: Any) -> None:
    pass
