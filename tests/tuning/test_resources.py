"""Room in the cluster for the trials that run at the same time."""

from dataclasses import replace

import pytest
import ray

from rayface import config as configs
from rayface.config import Config, TrainConfig
from rayface.tuning import resources
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec, SweepConfig
from tests.autoscaler import autoscaled


def node(**resources):
    return {"Alive": True, "Resources": {"memory": 1e9, **{name: float(count) for name, count in resources.items()}}}


@pytest.mark.parametrize(
    ("nodes", "keys", "message"),
    [
        ([node(CPU=4)], [], None),  # to the last CPU
        ([node(CPU=2), node(CPU=2)], [], None),
        ([node(CPU=3)], [], "2: the trials have 4 workers of 1 CPU each, the cluster has room for 3: lower it"),
        ([node(CPU=3.99)], [], "the cluster has room for 3: lower it"),
        ([node(CPU=3), node(CPU=3), node(CPU=3)], ["train.cpus_per_worker=2"], "4 workers of 2 CPU each, .* for 3"),
        ([node(CPU=4, GPU=2), node(CPU=4, GPU=2)], [], None),
        ([node(CPU=16, GPU=3)], [], "4 workers of 1 CPU and 1 GPU each, the cluster has room for 3"),
        ([node(CPU=2, GPU=4), node(CPU=8)], [], "4 workers of 1 CPU and 1 GPU each, the cluster has room for 2"),
        ([node(CPU=2, GPU=4), node(CPU=8)], ["train.device=cpu"], None),
    ],
)
def test_check_room_for_concurrent_trials_counts_what_fits_on_each_node(monkeypatch, nodes, keys, message):
    total = {name: sum(n["Resources"].get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    spec = Spec(search={"optim.lr": Parameter(choices=(0.1,))}, sweep=SweepConfig(concurrency=2))
    base = configs.load(overrides=["train.num_workers=2", *keys])
    if message is None:
        resources.check_room(spec, base)
        return
    with pytest.raises(ValueError, match=message):
        resources.check_room(spec, base)


def test_most_workers_of_a_searched_number_are_the_largest_choice():
    base = configs.load(overrides=["train.num_workers=8"])
    wide = Spec(search={"train.num_workers": Parameter(choices=(1, "[1, 3]", 2))})
    assert resources.most_workers(wide, base).train.max_workers == 3
    both = {"train.num_workers": Parameter(low=1, high=3), "train.cpus_per_worker": Parameter(choices=(4, 2))}
    most = resources.most_workers(Spec(search=both), base).train
    assert (most.max_workers, most.cpus_per_worker) == (3, 4)


def test_wait_for_nodes_asks_for_the_workers_of_all_trials_and_names_what_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = autoscaled(monkeypatch, most=2)
    base = Config(train=TrainConfig(num_workers=2, wait_for_nodes=5))
    spec = Spec(search={"optim.lr": [0.1, 0.2]})
    spec = replace(spec, sweep=replace(spec.sweep, concurrency=2))
    resources.wait_for_nodes(spec, base)
    assert cluster.asked[0] == [{"CPU": 1}] * 4
    resources.check_room(spec, base)
    more = replace(base, train=replace(base.train, num_workers=3, wait_for_nodes=0.1))
    with pytest.raises(ValueError, match=r"train.num_workers: 6: each needs 1 CPU, the cluster has room for 4"):
        resources.wait_for_nodes(spec, more)
