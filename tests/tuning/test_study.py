"""The study of a sweep: samplers, pruners, the best trials, storages that cannot be opened."""

import optuna
import pytest

from rayface.training.run_directory import RunDirectory
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Objective, Spec
from rayface.tuning.study import best_trials, interrupted, open_study, started
from tests.tuning.search_desk import NAMES, SEARCH, Desk


def test_sampler_of_a_resumed_study_draws_other_points(tmp_path):
    first = Desk(tmp_path, trials=2, sampler="random").start("a")
    second = Desk(tmp_path, trials=9, sampler="random")
    second.start("b")
    assert second.start("c")["values"] != first["values"]


def test_best_trials_of_several_objectives_are_the_pareto_front(tmp_path):
    objectives = (Objective(), Objective(metric="seconds", mode="min"))
    desk = Desk(tmp_path, objectives=objectives, trials=3)
    for name, values in zip("abc", [(0.9, 20.0), (0.8, 10.0), (0.7, 30.0)], strict=True):
        desk.start(name)
        desk.complete(name, *values)
    assert [trial.number for trial in best_trials(desk.study)] == [0, 1]


def test_best_trials_with_a_first_objective_to_minimise_begin_with_the_lowest(tmp_path):
    objectives = (Objective(metric="seconds", mode="min"), Objective())
    desk = Desk(tmp_path, objectives=objectives, trials=3)
    for name, values in zip("abc", [(20.0, 0.9), (10.0, 0.8), (30.0, 0.7)], strict=True):
        desk.start(name)
        desk.complete(name, *values)
    assert [trial.number for trial in best_trials(desk.study)] == [1, 0]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "random"])
def test_sampler_of_a_seed_draws_its_points_and_that_of_another_seed_others(tmp_path, sampler):
    found = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(Desk(folder, sampler=sampler, seed=seed, trials=1).start("a")["values"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("tpe", "asha"), ("cmaes", "hyperband"), ("gp", "median"), ("random", "none"), ("grid", "asha")],
)
def test_study_with_any_sampler_and_pruner_completes_its_trials(tmp_path, sampler, pruner):
    space = {**SEARCH, "optim.lr": Parameter(low=0.1, high=0.5, step=0.1)}
    desk = Desk(tmp_path, search=space, sampler=sampler, pruner=pruner, trials=5)
    for number in range(5):
        values = desk.start(str(number))["values"]
        desk.report(str(number), 1, values["optim.lr"])
        desk.complete(str(number), values["optim.lr"])
    assert desk.states()[:5] == ["COMPLETE"] * 5
    assert best_trials(desk.study)[0].values[0] == max(t.values[0] for t in desk.ended)


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_pruner_of_trials_worse_than_all_before_gives_them_up(tmp_path, pruner):
    desk = Desk(tmp_path, trials=8, pruner=pruner, min_steps=10, reduction_factor=2)
    for number in range(8):
        desk.start(str(number))
        run = RunDirectory(tmp_path / "trials" / f"{number:04d}")
        for step in (10, 20, 40, 80):
            if not run.stop_requested():
                desk.report(str(number), step, 1.0 - number / 10)
        if run.stop_requested():
            desk.search.on_trial_complete(str(number), {"state": "PRUNED"})
        else:
            desk.complete(str(number), 1.0 - number / 10)
    states = desk.states()
    assert states[0] == "COMPLETE"
    assert ("PRUNED" in states) == (pruner != "none")
    assert set(states) <= {"COMPLETE", "PRUNED"}


def asked_to_stop(desk, step, values):
    """Report a value of each trial at a step; return which of the trials have been asked to stop."""
    for number, value in enumerate(values):
        desk.report(str(number), step, value)
    return [RunDirectory(desk.folder / "trials" / f"{number:04d}").stop_requested() for number in range(len(values))]


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
@pytest.mark.parametrize(("factor", "kept"), [(2, [0, 3, 5, 7]), (4, [0, 7])])
def test_pruner_keeps_one_in_reduction_factor_trials_and_prunes_none_before_min_steps(tmp_path, pruner, factor, kept):
    """The k-th trial is kept if it is among the k // factor best so far, or the best."""
    # As many steps as a trial has: hyperband has one bracket.
    desk = Desk(tmp_path, trials=8, pruner=pruner, min_steps=100, reduction_factor=factor)
    for number in range(8):
        desk.start(str(number))
    assert not any(asked_to_stop(desk, 99, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]))
    asked = asked_to_stop(desk, 100, [0.9, 0.5, 0.6, 0.7, 0.3, 0.8, 0.4, 0.85])
    assert [number for number in range(8) if not asked[number]] == kept


def test_median_pruner_compares_with_four_complete_trials_from_min_steps_on(tmp_path):
    desk = Desk(tmp_path, trials=6, pruner="median", min_steps=30)
    for number in range(6):
        desk.start(str(number))
    for step in (29, 30):
        asked_to_stop(desk, step, [0.5] * 4)
    for number in range(3):
        desk.complete(str(number), 0.5)
    desk.report("4", 30, 0.1)
    desk.complete("3", 0.5)
    for step in (29, 30):
        assert not any(RunDirectory(tmp_path / "trials" / f"{number:04d}").stop_requested() for number in (4, 5))
        desk.report("5", step, 0.1)
    assert RunDirectory(tmp_path / "trials" / "0005").stop_requested()


PLANE = {f"optim.{name}": Parameter(low=0.0, high=1.0) for name in ("lr", "momentum")}


@pytest.mark.parametrize(("sampler", "trials", "last"), [("tpe", 26, 4), ("cmaes", 26, 4), ("gp", 14, 4)])
def test_sampler_after_enough_trials_suggests_better_points(tmp_path, sampler, trials, last):
    desk = Desk(tmp_path, search={**PLANE, "schedule.name": NAMES}, sampler=sampler, trials=trials)
    found = []
    for number in range(trials):
        values = desk.start(str(number))["values"]
        found.append(-((values["optim.lr"] - 0.3) ** 2) - (values["optim.momentum"] - 0.6) ** 2)
        desk.complete(str(number), found[-1])
    assert desk.states() == ["COMPLETE"] * trials
    assert sum(found[-last:]) / last > sum(found[:8]) / 8


def test_open_study_to_resume_a_missing_one_raises(tmp_path):
    desk = Desk(tmp_path)
    uri = f"sqlite:///{tmp_path / 'study.db'}"
    assert open_study(desk.spec, "test", uri, total_steps=1, resume=True).study_name == "test"
    with pytest.raises(ValueError, match="it holds no study other: set the storage that the sweep was started with"):
        open_study(desk.spec, "other", uri, total_steps=1, resume=True)


def test_open_study_in_a_storage_that_cannot_be_opened_raises_one_line(tmp_path):
    spec = Spec(search=SEARCH)
    with pytest.raises(ValueError, match=r"sweep\.storage: the study cannot be opened") as caught:
        open_study(spec, "test", f"sqlite:///{tmp_path}/missing/study.db", total_steps=1)
    assert "\n" not in str(caught.value)


def test_open_study_that_fails_with_the_uri_in_its_error_does_not_show_the_password(monkeypatch):
    def refuse(uri):
        raise ConnectionError(f"cannot reach {uri}")

    monkeypatch.setattr(optuna.storages, "RDBStorage", refuse)
    with pytest.raises(ValueError, match=r"ConnectionError: cannot reach postgresql://.*@host/db") as caught:
        open_study(Spec(search=SEARCH), "test", "postgresql://me:pl4nted@host/db", total_steps=1)
    assert "pl4nted" not in str(caught.value)


def test_open_study_of_an_edited_sweep_replaces_one_without_trials_and_keeps_one_with(tmp_path):
    lowest = (Objective(metric="loss", mode="min"),)
    spaces = [{"head.scale": Parameter(choices=choices)} for choices in ((8, 16, 32), (4, 8))]
    Desk(tmp_path, search=spaces[0], sampler="grid", trials=9)
    edited = Desk(tmp_path, search=spaces[1], objectives=lowest, sampler="grid", trials=9)
    assert edited.study.direction.name == "MINIMIZE"
    assert edited.states() == ["WAITING"] * 2
    assert edited.start("a")["values"] == {"head.scale": 4}
    again = Desk(tmp_path, search=spaces[1], objectives=lowest, sampler="grid", trials=9)
    assert again.states() == ["RUNNING", "WAITING"]


def test_sweep_resumed_with_fewer_trials_than_have_started_runs_the_interrupted_ones(tmp_path):
    desk = Desk(tmp_path, trials=5)
    for name in "abc":
        desk.start(name)
    desk.complete("a", 0.5)
    assert Desk(tmp_path, trials=1).search.remaining == 2


def test_best_trials_without_a_complete_one_are_none(tmp_path):
    desk = Desk(tmp_path, trials=3)
    desk.start("a")
    assert best_trials(desk.study) == []


def test_started_and_interrupted_trials_of_a_grid_leave_out_those_that_wait(tmp_path):
    space = {"head.scale": Parameter(choices=(8, 16, 32))}
    desk = Desk(tmp_path, search=space, sampler="grid", trials=9)
    for name in "ab":
        desk.start(name)
    desk.complete("a", 0.5)
    assert len(started(desk.study)) == 2
    assert [trial.number for trial in interrupted(desk.study)] == [1]


def test_open_study_of_a_grid_a_second_time_enqueues_no_point_twice(tmp_path):
    space = {"head.scale": Parameter(choices=(8, 16, 32))}
    for _ in range(2):
        desk = Desk(tmp_path, search=space, sampler="grid", trials=9)
        assert desk.states() == ["WAITING"] * 3
