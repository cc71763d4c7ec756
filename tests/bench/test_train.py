"""The measurement of training runs and accounts for all of a step's time."""

import pytest

from rayface import config as configs
from rayface.bench.train import PHASES, bench_train


def test_bench_train_of_two_nets_has_phases_that_add_up_to_the_step() -> None:
    config = configs.load("debug", None, ["train.batch_size=4", "backbone.width=0.25", "train.precision=fp32"])
    found = bench_train(["mini", "mbf"], config, num_classes=20, steps=2, ops=4).as_dict()
    assert [each["name"] for each in found["backbones"]] == ["mini", "mbf"]
    assert (found["batch_size"], found["precision"], found["data"]) == (4, "fp32", None)
    for each in found["backbones"]:
        assert set(each["share"]) == set(PHASES)
        assert sum(each["share"].values()) == pytest.approx(1)
        assert each["images_per_second"] == pytest.approx(4 / each["step_seconds"])
        assert len(each["ops"]) == 4
        shares = [op["share"] for op in each["ops"]]
        assert shares == sorted(shares, reverse=True)
        assert 0.3 < sum(shares) <= 1
        assert all(op["calls"] >= 0.5 and op["seconds"] > 0 for op in each["ops"])
        assert any("conv" in op["op"] for op in each["ops"])
        assert min(each["seconds"][phase] for phase in ("forward", "head", "backward", "optimizer")) > 0


def test_bench_train_of_an_unknown_net_raises_one_line() -> None:
    with pytest.raises(ValueError, match=r"backbone\.name 'r19' .* did you mean 'r18'"):
        bench_train(["r19"], configs.load("debug"))
