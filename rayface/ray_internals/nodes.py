"""Ray's private classes of nodes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    from ray._private import ray_constants, services, utils
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.state import available_resources_per_node  # noqa: F401  # for training.resources
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

_NOBODY = b"127.0.0.1:9"  # a port where nothing listens
_LOOK_SECONDS, _LOOKS = 0.02, 1500


@contextmanager
def started_nodes(
    *, worker_scripts: Mapping[str, str], log_monitor: bool = True, autoscaler: bool = True, api_server: bool = True
) -> Iterator[None]:
    """Change the nodes that this process starts inside the context.

    Args:
        worker_scripts: scripts that they run in place of Ray's, by the names of Ray's parameters.
        log_monitor: have a process that sends the output of workers to drivers.
        autoscaler: have a process that asks for more nodes.
        api_server: have a process for the dashboard. Without a dashboard it does nothing, and is waited for.
    """
    update_if_absent = RayParams.update_if_absent
    options: dict[str, object] = {"include_log_monitor": log_monitor, **worker_scripts}

    def with_options(self: RayParams, **values: Any) -> None:
        self.no_monitor = not autoscaler
        # Any free one: where another Ray has the default one, an agent tries for 3.5 s to get it, and the node waits.
        self.dashboard_agent_listen_port = 0
        update_if_absent(self, **options)
        update_if_absent(self, **values)

    def without_api_server(self: Node, **_: Any) -> None:
        self._webui_url = ""
        # An agent would look for it once a second, and log each time that there is none.
        address, namespace = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
        self.get_gcs_client().internal_kv_put(address, _NOBODY, True, namespace)

    get_node = services.get_node

    def get_node_soon(gcs_address: str, node_id: str) -> Any:
        """Ray's own looks once a second whether the node has registered."""
        client = GcsClient(address=gcs_address)
        for _ in range(_LOOKS):
            if any(found.hex() == node_id for found in client.get_all_node_info()):
                break
            time.sleep(_LOOK_SECONDS)
        return get_node(gcs_address, node_id)

    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(services, "get_node", get_node_soon))
        patches.enter_context(patch.object(RayParams, "update_if_absent", with_options))
        if not api_server:
            patches.enter_context(patch.object(Node, "start_api_server", without_api_server))
            # It would import the dashboard's packages here, .5 s, to see whether they can be: rayface depends on them.
            patches.enter_context(patch.object(utils, "get_dashboard_dependency_error", lambda: None))
        yield


@contextmanager
def forking_nodes(worker_scripts: Mapping[str, str], started: Callable[[int], None]) -> Iterator[None]:
    """Have nodes that this process starts inside the context run `worker_scripts` in place of Ray's.

    Args:
        worker_scripts: by the names of Ray's parameters.
        started: called with the process id of a node's raylet.
    """
    update_if_absent, start_raylet = RayParams.update_if_absent, Node.start_raylet

    def with_scripts(self: RayParams, **values: Any) -> None:
        update_if_absent(self, **worker_scripts)
        update_if_absent(self, **values)

    def start_and_report(self: Node, *arguments: Any, **options: Any) -> None:
        start_raylet(self, *arguments, **options)
        started(self.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process.pid)

    with (
        patch.object(RayParams, "update_if_absent", with_scripts),
        patch.object(Node, "start_raylet", start_and_report),
    ):
        yield
