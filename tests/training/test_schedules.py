"""What all schedules of the registry have in common: build, state and resume."""

import json
import math

import pytest

from rayface import config as configs
from rayface.training.schedules import SCHEDULES, FastFace, RunLength, build_schedule
from tests.training.schedules.schedule_runs import LR, build, noisy, rates, run, sgd

STATES = [
    ("polynomial", {"warmup_epochs": 1}),
    ("multi_step", {"warmup_epochs": 1, "milestones": (2,)}),
    ("cosine", {"warmup_epochs": 1}),
    ("constant", {"warmup_epochs": 1}),
    ("plateau", {"alpha": 0.3, "tolerance": 0.01, "decay": 2.0, "max_decays": 8}),
    ("fastface", {"lambda_total": 20.0, "alpha_total": 50.0, "tolerance": 0.02, "restart_after": 2}),
    ("fastface", {"detector": "haar_window", "window": 20, "tolerance": 0.02, "restart_after": 2}),
]


@pytest.mark.parametrize(("name", "options"), STATES)
def test_schedule_resumed_at_any_step_gives_the_rates_of_the_whole_run(name, options):
    losses = [float(loss) for loss in noisy(400)]
    optimizer = sgd()
    whole = rates(build(name, optimizer, 400, **options), optimizer, losses)
    assert name == "constant" or len(set(whole)) > 1
    for stop in (1, 13, 150, 333):
        schedule = build(name, optimizer := sgd(), 400, **options)
        before = rates(schedule, optimizer, losses[:stop])
        state = json.loads(json.dumps(schedule.state_dict()))  # as a checkpoint keeps it
        resumed = build(name, optimizer := sgd(), 400, **options)
        optimizer.load_state_dict(sgd().state_dict())  # comes first when a run is resumed, and makes new groups
        resumed.load_state_dict(state)
        assert before + rates(resumed, optimizer, losses[stop:]) == whole


@pytest.mark.parametrize(("name", "options"), STATES)
def test_schedule_with_a_step_left_out_counts_the_step_and_not_its_loss(name, options):
    losses = [float(loss) for loss in noisy(120)]
    whole = rates(build(name, optimizer := sgd(), 120, **options), optimizer, losses)
    gap = [*losses[:50], math.nan, *losses[50:]]
    got = rates(build(name, optimizer := sgd(), 120, **options), optimizer, gap)
    follows_the_loss = name in ("plateau", "fastface")
    assert (got[:50] + got[51:] if follows_the_loss else got[:120]) == whole


def test_load_state_dict_of_another_schedule_raises():
    ours = build("fastface", sgd(), 10)
    for name, options in STATES:
        if name != "fastface" or options.get("detector"):
            other = build(name, sgd(), 10, **options)
            for loading, loaded in ((ours, other), (other, ours)):
                with pytest.raises(ValueError, match="another kind of schedule"):
                    loading.load_state_dict(loaded.state_dict())
    small, large = (FastFace(sgd(), total_steps=10, detector="haar_window", window=m) for m in (4, 8))
    with pytest.raises(ValueError, match=r"schedule\.window: 8: the run was started with 4"):
        large.load_state_dict(small.state_dict())


def test_build_schedule_of_every_registered_name_steps():
    for name in SCHEDULES:
        config = configs.with_overrides(configs.Config(), {"schedule.name": name, "schedule.milestones": [2]})
        schedule = build_schedule(config.schedule, sgd(), RunLength(total_steps=10, steps_per_epoch=5))
        schedule.step(1.0)
        assert schedule.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cosin"}, r"schedule.name: 'cosin': must be one of polynomial"),
        ({"name": "multi_step"}, r"schedule.milestones: \(\): must list"),
        ({"name": "fastface", "warmup_epochs": 2.0}, r"schedule.warmup_epochs: 2: must be 0 with fastface"),
        ({"name": "plateau", "warmup_epochs": 2.0}, r"schedule.warmup_epochs: 2: must be 0 with plateau"),
        ({"name": "fastface", "detector": "haar_window", "lambda_total": 1.0}, r"schedule.lambda_total: 1: requires"),
        ({"name": "fastface", "threshold": 0.1, "lambda_total": 1.0}, r"replaces threshold"),
    ],
)
def test_build_schedule_with_excluding_settings_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes, optimizer=sgd(), total=10)


def test_schedule_of_a_plugin_is_built_by_its_name(monkeypatch):
    monkeypatch.setitem(
        SCHEDULES, "mine", lambda config, optimizer, length: SCHEDULES["constant"](config, optimizer, length)
    )
    assert run("mine", 4) == [LR] * 4
