"""Search spaces: what they suggest, what they refuse, their grids."""

import warnings

import optuna
import pytest
from pydantic import ValidationError

from rayface.tuning.search_space import Parameter, grid, suggest

optuna.logging.set_verbosity(optuna.logging.ERROR)


SPACE = {
    "optim.lr": Parameter(low=0.01, high=1.0, log=True),
    "train.batch_size": Parameter(low=16, high=64, step=16),
    "schedule.name": Parameter(choices=("polynomial", "fastface")),
    "schedule.decay": Parameter(choices=(2.0, 4.0), when={"schedule.name": "fastface"}),
    "schedule.power": Parameter(low=1.0, high=2.0, when={"schedule.name": ("polynomial", "cosine")}),
}


def test_suggest_with_conditions_gives_values_in_their_ranges_where_they_apply():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [suggest(SPACE, study.ask()) for _ in range(60)]
    assert all(0.01 <= values["optim.lr"] <= 1 for values in seen)
    assert 15 < sum(values["optim.lr"] < 0.1 for values in seen) < 45  # half of a log range
    assert {values["train.batch_size"] for values in seen} == {16, 32, 48, 64}
    for values in seen:
        fast = values["schedule.name"] == "fastface"
        assert ("schedule.decay" in values) == fast
        assert ("schedule.power" in values) == (not fast)
    assert list(seen[0])[:3] == ["optim.lr", "train.batch_size", "schedule.name"]


def test_grid_of_choices_and_steps_has_every_point_once():
    space = {key: parameter for key, parameter in SPACE.items() if key not in ("optim.lr", "schedule.power")}
    points = grid(space)
    assert len(points) == 4 * (1 + 2)
    assert len({str(point) for point in points}) == 12
    assert {"train.batch_size": 16, "schedule.name": "polynomial"} in points
    assert {"train.batch_size": 64, "schedule.name": "fastface", "schedule.decay": 4.0} in points
    assert Parameter(low=0.0, high=0.3, step=0.1).grid() == (0, 0.1, 0.2, 0.3)
    assert Parameter(low=1e-7, high=4e-7, step=1e-7).grid() == (1e-7, 2e-7, 3e-7, 4e-7)
    assert Parameter(low=1, high=8, step=3).grid() == (1, 4, 7)
    assert Parameter(low=2, high=2).grid() == (2,)
    assert {type(value) for value in Parameter(low=1, high=8, step=3).grid() or ()} == {int}
    assert {type(value) for value in Parameter(low=1, high=4, step=1.5).grid() or ()} == {float}
    assert Parameter(low=1, high=8, log=True).grid() is None
    with pytest.raises(ValueError, match=r"search\.optim\.lr: is a continuous range"):
        grid(SPACE)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"low": 1},
        {"low": 2, "high": 1},
        {"choices": ()},
        {"high": 1},
        {"choices": (1,), "low": 0},
        {"choices": (1,), "high": 0},
        {"choices": (1,), "step": 1},
        {"choices": (1,), "log": True},
        {"low": 0, "high": 1, "log": True},
        {"low": 1, "high": 8, "log": True, "step": 1},
        {"low": 1, "high": 8, "step": 0},
    ],
)
def test_parameter_without_a_valid_range_or_choices_raises(given):
    with pytest.raises(ValidationError):
        Parameter(**given)


def test_grid_of_float_steps_stays_within_its_range_for_optuna():
    space = {"x": Parameter(low=0.1, high=0.7, step=0.1), "y": Parameter(low=0, high=1, when={"x": (0.3, 0.7)})}
    study = optuna.create_study()
    points = grid(space)
    assert [point["x"] for point in points] == [0.1, 0.2, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7]
    for point in points:
        study.enqueue_trial(point)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [suggest(space, study.ask()) for _ in points] == points


def test_suggest_of_a_float_range_with_a_step_gives_its_steps_alone():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {"head.margin_value": Parameter(low=0.25, high=1.0, step=0.25)}
    assert {suggest(space, study.ask())["head.margin_value"] for _ in range(40)} == {0.25, 0.5, 0.75, 1.0}


def test_condition_on_a_parameter_that_does_not_apply_is_not_met():
    rest = {"schedule.power": Parameter(choices=(1, 2), when={"schedule.decay": (2.0, 4.0)})}
    assert grid({**{key: SPACE[key] for key in ("schedule.name", "schedule.decay")}, **rest}) == [
        {"schedule.name": "polynomial"},
        *({"schedule.name": "fastface", "schedule.decay": d, "schedule.power": p} for d in (2.0, 4.0) for p in (1, 2)),
    ]


def test_given_fields_of_a_parameter_are_those_that_are_set():
    assert Parameter(choices=(1, "a")).given() == {"choices": [1, "a"]}
    assert Parameter(low=0.1, high=1, log=True).given() == {"low": 0.1, "high": 1, "log": True}


def test_condition_on_a_float_that_is_off_in_its_last_bit_applies():
    assert Parameter(choices=(1,), when={"x": 0.3}).applies({"x": 0.1 + 0.2})
    assert not Parameter(choices=(1,), when={"x": 0.3}).applies({"x": 0.30001})
    assert not Parameter(choices=(1,), when={"x": "0.3"}).applies({"x": 0.3})
