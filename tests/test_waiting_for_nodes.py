"""Verbs on a cluster whose nodes come when they are asked for, as that of cluster.yaml; no Ray started."""

from dataclasses import replace
from typing import Any

import pytest

from rayface import session
from rayface.config import Config, TrainConfig
from rayface.embedding import embed
from rayface.session import NoRoomError, require_workers, takes_gpu
from rayface.tuning import resources
from rayface.tuning.spec import Spec


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


@pytest.fixture
def autoscaler(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Autoscaler:
    cluster = Autoscaler(**request.param)
    monkeypatch.setattr(session, "request_resources", cluster.request)
    monkeypatch.setattr(session, "_POLL_SECONDS", 0.01)
    for name in ("nodes", "cluster_resources"):
        monkeypatch.setattr(session.ray, name, getattr(cluster, name))
    return cluster


@pytest.mark.parametrize("autoscaler", [{"most": 4}], indirect=True)
def test_embed_asks_an_empty_cluster_for_nodes_and_then_uses_them(autoscaler, messages):
    embed._wait_for_nodes(TrainConfig(wait_for_nodes=5), 4)
    assert autoscaler.asked == [[{"CPU": 1.0}] * 4, []]
    assert messages() == ["waiting up to 5 s for nodes: 4 workers of 1 CPU each, room for 0"]
    assert embed.find_room("auto") == (False, 4, 1)
    with pytest.raises(NoRoomError, match=r"^embed.workers: 9: each needs 1 CPU, the cluster has room for 8"):
        embed._wait_for_nodes(TrainConfig(wait_for_nodes=0.1), 9)


@pytest.mark.parametrize("autoscaler", [{"most": 4, "gpus": 1}], indirect=True)
def test_gpus_of_the_nodes_that_came_are_found_and_asked_for(autoscaler):
    require_workers("auto", 2.0, 3, wait=5)
    assert takes_gpu("auto")
    assert autoscaler.asked == [[{"CPU": 2.0}] * 3, []]  # which brought a GPU each
    assert embed.find_room("auto") == (True, 3, 2)


@pytest.mark.parametrize("autoscaler", [{"most": 2}], indirect=True)
def test_tune_asks_for_the_workers_of_all_trials_at_once_and_names_what_does_not_come(autoscaler):
    base = Config(train=TrainConfig(num_workers=2, wait_for_nodes=5))
    spec = Spec(search={"optim.lr": [0.1, 0.2]})
    spec = replace(spec, sweep=replace(spec.sweep, concurrency=2))
    resources.wait_for_nodes(spec, base)
    assert autoscaler.asked[0] == [{"CPU": 1}] * 4
    resources.check_room(spec, base)
    more = replace(base, train=replace(base.train, num_workers=3, wait_for_nodes=0.1))
    with pytest.raises(ValueError, match=r"train.num_workers: 6: each needs 1 CPU, the cluster has room for 4"):
        resources.wait_for_nodes(spec, more)
