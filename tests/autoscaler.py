"""A stand-in for a cluster whose nodes come when they are asked for, as that of cluster.yaml; no Ray started."""

from typing import Any

import pytest

from rayface import session


class Autoscaler:
    """A head without CPUs; a node comes for every 2 CPUs that are asked for, up to `most`."""

    def __init__(self, most: int, gpus: int = 0) -> None:
        self.most, self.gpus, self.asked = most, gpus, []
        self.resources: list[dict[str, float]] = [{"CPU": 0.0}]

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)
        while sum(node["CPU"] for node in self.resources) < sum(bundle["CPU"] for bundle in bundles):
            if len(self.resources) > self.most:
                return
            self.resources.append({"CPU": 2.0, **({"GPU": float(self.gpus)} if self.gpus else {})})

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.resources]

    def cluster_resources(self) -> dict[str, float]:
        return {name: sum(node.get(name, 0) for node in self.resources) for name in ("CPU", "GPU")}


def autoscaled(monkeypatch: pytest.MonkeyPatch, most: int, gpus: int = 0) -> Autoscaler:
    """Put the stand-in in the place of Ray; waiting for nodes polls at once."""
    cluster = Autoscaler(most, gpus)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", cluster.request)
    monkeypatch.setattr(session, "_POLL_SECONDS", 0.01)
    for name in ("nodes", "cluster_resources"):
        monkeypatch.setattr(session.ray, name, getattr(cluster, name))
    return cluster
