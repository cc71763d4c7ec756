"""Room on the cluster for the workers of all trials that run at once."""

from dataclasses import replace

import pytest

from rayface.config import Config, TrainConfig
from rayface.tuning import resources
from rayface.tuning.spec import Spec
from tests.autoscaler import autoscaled


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
