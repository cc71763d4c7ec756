"""Ray's private classes of nodes."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    from ray._private import utils
    from ray._private.node import Node
    from ray._private.parameter import RayParams

_UNWANTED = ImportError("a local Ray of rayface has no dashboard")


@contextmanager
def started_nodes(
    *, worker: Path | None, log_monitor: bool = True, autoscaler: bool = True, api_server: bool = True
) -> Iterator[None]:
    """Change the nodes that this process starts inside the context.

    Args:
        worker: a script that they run in place of Ray's default_worker.py.
        log_monitor: have a process that sends the output of workers to drivers.
        autoscaler: have a process that asks for more nodes.
        api_server: have a process for the dashboard. Without a dashboard it does nothing, and is waited for.
    """
    update_if_absent = RayParams.update_if_absent
    options: dict[str, object] = {"include_log_monitor": log_monitor}
    if worker is not None:
        options["worker_path"] = str(worker)

    def with_options(self: RayParams, **values: Any) -> None:
        self.no_monitor = not autoscaler
        # Any free one: where another Ray has the default one, an agent tries for 3.5 s to get it, and the node waits.
        self.dashboard_agent_listen_port = 0
        update_if_absent(self, **options)
        update_if_absent(self, **values)

    def without_api_server(self: Node, **_: Any) -> None:
        self._webui_url = ""

    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(RayParams, "update_if_absent", with_options))
        if not api_server:
            patches.enter_context(patch.object(Node, "start_api_server", without_api_server))
            patches.enter_context(patch.object(utils, "get_dashboard_dependency_error", lambda: _UNWANTED))
        yield
