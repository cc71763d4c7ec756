"""Ray's private coordinator of requests for nodes."""

import uuid
from collections.abc import Sequence

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator

__all__ = ["NodeRequest"]

_EXPIRES_SECONDS = 60.0  # after the last `send`, for a process that was killed


class NodeRequest:
    """Request for nodes that is added to those of other jobs.

    Ray's autoscaler keeps one request, which every `request_resources` replaces. Ray Train and Ray Data send theirs
    through an actor that adds them up.

    Args:
        bundles: resources of each worker that the cluster shall have room for.
    """

    def __init__(self, bundles: Sequence[dict[str, float]]) -> None:
        self._bundles = list(bundles)
        self._coordinator = DefaultAutoscalingCoordinator(f"rayface-{uuid.uuid4().hex[:12]}")

    def send(self) -> None:
        """Request the nodes, for a minute: call it repeatedly."""
        priority = ResourceRequestPriority.LOW  # it reserves nothing that Ray Data of another job could use
        self._coordinator.request_resources(self._bundles, _EXPIRES_SECONDS, priority=priority)

    def cancel(self) -> None:
        """Withdraw the request."""
        self._coordinator.cancel_request()
