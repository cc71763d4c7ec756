"""A stand-in for a cluster whose nodes come when they are asked for, as that of cluster.yaml; no Ray started."""

from types import SimpleNamespace
from typing import Any

import pytest

from rayface import session
from rayface.ray_internals import autoscaling


class Autoscaler:
    """A head without CPUs; a node comes for every 2 CPUs that are asked for, up to `most`."""

    def __init__(self, most: int, gpus: int = 0) -> None:
        self.most, self.gpus = most, gpus
        self.asked: list[list[dict[str, float]]] = []
        self.resources: list[dict[str, float]] = [{"CPU": 0.0}]

    def request(self, bundles: list[dict[str, float]]) -> None:
        if self.asked[-1:] != [bundles]:  # it is repeated until the nodes are there
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

    def request(bundles: list[dict[str, float]]) -> SimpleNamespace:
        return SimpleNamespace(send=lambda: cluster.request(bundles), cancel=lambda: cluster.request([]))

    monkeypatch.setattr(autoscaling, "NodeRequest", request)
    monkeypatch.setattr(session, "_POLL_SECONDS", 0.01)
    for name in ("nodes", "cluster_resources"):
        monkeypatch.setattr(session.ray, name, getattr(cluster, name))
    return cluster
