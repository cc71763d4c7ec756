"""The search without Ray: what it hands out, when it gives a trial up, what it leaves after a crash."""

import math

import pytest
import ray
from ray.tune.search import Searcher

from rayface.training.run_directory import RunDirectory
from rayface.tuning.search import StudySearch
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Objective, Spec, SweepConfig
from rayface.tuning.study import best_trials, open_study

NAMES = Parameter(choices=("cosine", "constant"))
SEARCH = {"optim.lr": Parameter(low=0.01, high=1.0, log=True), "schedule.name": NAMES}
ACCURACY = Objective()


class Desk:
    """A search over a study on disk, with the trials that have ended."""

    def __init__(self, folder, *, search=SEARCH, objectives=(ACCURACY,), **sweep):
        self.spec = Spec(search=search, objectives=objectives, sweep=SweepConfig(**sweep))
        self.folder = folder
        self.study = open_study(self.spec, "test", f"sqlite:///{folder / 'study.db'}", total_steps=100)
        self.ended = []
        self.search = StudySearch(self.study, self.spec, folder, self.ended.append)

    def start(self, name):
        job = self.search.suggest(name)
        if isinstance(job, dict):
            (self.folder / "trials" / job["run"][-4:]).mkdir(parents=True, exist_ok=True)
        return job

    def report(self, name, step, value):
        self.search.on_trial_result(name, {"state": "RUNNING", "step": step, "value": value})

    def complete(self, name, *values):
        self.search.on_trial_complete(name, {"state": "COMPLETE", "values": list(values), "seconds": 1.0})

    def states(self):
        return [trial.state.name for trial in self.study.get_trials()]


def test_trials_end_as_they_report_and_the_sweep_goes_on(tmp_path):
    desk = Desk(tmp_path, trials=4)
    for name in "abcd":
        job = desk.start(name)
        assert set(job["values"]) == set(SEARCH)
    assert desk.start("e") == Searcher.FINISHED
    desk.complete("a", 0.8)
    desk.search.on_trial_complete("b", {"state": "FAIL", "reason": "TrainingStoppedError: the loss is nan"})
    desk.search.on_trial_complete("c", None, error=True)
    desk.search.on_trial_complete("d", {"state": "PRUNED"})  # nobody asked it to stop
    assert desk.states() == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    reasons = [trial.user_attrs.get("reason", "") for trial in desk.ended]
    assert reasons[1:3] == [
        "TrainingStoppedError: the loss is nan",
        "its process was killed more often than train.max_failures",
    ]
    assert [trial.number for trial in best_trials(desk.study)] == [0]


def fail(desk, name, reason):
    desk.search.on_trial_complete(name, {"state": "FAIL", "reason": reason})


def test_search_ends_where_the_first_trials_fail_alike_and_is_taken_up_by_resume(tmp_path):
    desk = Desk(tmp_path, trials=9)
    for name in "abc":
        job = desk.start(name)
        fail(desk, name, f"OSError: {job['run']}/x: no such file")  # the same but for where
    assert desk.search.failing_alike == "OSError: its run/x: no such file"
    assert desk.start("d") == Searcher.FINISHED
    again = Desk(tmp_path, trials=9)
    assert again.search.remaining == 6
    assert isinstance(again.start("e"), dict)


def test_search_waits_for_a_trial_at_work_where_the_first_ones_failed_alike(tmp_path):
    desk = Desk(tmp_path, trials=9)
    for name in "abcd":
        desk.start(name)
    for name in "abc":
        fail(desk, name, "OSError: no such file")
    assert desk.start("e") is None
    desk.complete("d", 0.5)
    assert isinstance(desk.start("e"), dict)


def test_search_goes_on_where_the_first_trials_fail_in_several_ways(tmp_path):
    desk = Desk(tmp_path, trials=9)
    for name in "abc":
        desk.start(name)
        fail(desk, name, f"TrainingStoppedError: the loss of step {ord(name)} is nan")
    assert isinstance(desk.start("d"), dict)


def test_trial_that_lost_its_nodes_is_left_to_resume_and_no_other_starts(tmp_path):
    desk = Desk(tmp_path, trials=9)
    job = desk.start("a")
    desk.search.on_trial_complete("a", {"state": "LOST", "reason": "no room for 600 s"})
    assert (desk.search.lost, desk.ended) == ("trial 0: no room for 600 s", [])
    assert desk.start("b") == Searcher.FINISHED
    assert Desk(tmp_path, trials=9).start("c") == job


def test_trial_that_was_asked_to_stop_is_asked_again_where_another_process_took_over(tmp_path):
    desk = Desk(tmp_path, trials=4, pruner="asha", min_steps=10, reduction_factor=2)
    for name, value in zip("ab", (0.9, 0.1), strict=True):
        desk.start(name)
        desk.report(name, 10, value)
    run = RunDirectory(tmp_path / "trials" / "0001")
    run.clear_stop_request()
    desk.report("b", 11, 0.1)
    assert run.stop_requested()


def test_a_trial_that_falls_behind_is_asked_to_stop(tmp_path):
    desk = Desk(tmp_path, trials=4, pruner="asha", min_steps=10, reduction_factor=2)
    for name, value in zip("abcd", (0.9, 0.8, 0.7, 0.1), strict=True):
        desk.start(name)
        desk.report(name, 5, value)
        desk.report(name, 10, value)
    asked = [RunDirectory(tmp_path / "trials" / f"{number:04d}").stop_requested() for number in range(4)]
    assert asked == [False, False, False, True] or asked == [False, True, True, True]
    desk.search.on_trial_complete("d", {"state": "PRUNED"})
    assert desk.states()[3] == "PRUNED"
    assert desk.ended[0].intermediate_values == {5: 0.1, 10: 0.1}
    desk.report("a", 20, math.nan)
    desk.complete("a", 0.9)
    assert desk.states()[0] == "COMPLETE"


def test_after_a_crash_interrupted_trials_come_first_under_their_numbers(tmp_path):
    desk = Desk(tmp_path, trials=5)
    jobs = [desk.start(name) for name in "abc"]
    desk.complete("b", 0.5)
    again = Desk(tmp_path, trials=5)
    assert again.search.remaining == 2 + 2
    taken = [again.start(name) for name in "vwxy"]
    assert taken[:2] == [jobs[0], jobs[2]]
    assert [job["run"][-4:] for job in taken[2:]] == ["0003", "0004"]
    assert again.start("z") == Searcher.FINISHED
    for name in "vwxy":
        again.complete(name, 0.4)
    assert again.states() == ["COMPLETE"] * 5
    assert [trial.number for trial in again.ended] == [0, 2, 3, 4]


def test_new_points_after_a_crash_are_not_the_first_ones_again(tmp_path):
    first = Desk(tmp_path, trials=2, sampler="random").start("a")
    second = Desk(tmp_path, trials=9, sampler="random")
    second.start("b")
    assert second.start("c")["values"] != first["values"]


def test_trials_stopped_with_the_sweep_are_left_for_later(tmp_path):
    desk = Desk(tmp_path, trials=3)
    job = desk.start("a")
    desk.search.stop()
    assert RunDirectory(tmp_path / "trials" / job["run"][-4:]).stop_requested()
    assert desk.start("b") == Searcher.FINISHED
    desk.search.on_trial_complete("a", {"state": "PRUNED"})
    assert desk.states() == ["RUNNING"]
    assert desk.ended == []


def test_no_trial_starts_after_the_time_budget(tmp_path):
    assert Desk(tmp_path, trials=3, time_budget=1e-9).start("a") == Searcher.FINISHED


def test_a_grid_hands_out_every_point_once_over_a_crash(tmp_path):
    space = {"head.scale": Parameter(choices=(8, 16)), "schedule.name": NAMES}
    desk = Desk(tmp_path, search=space, sampler="grid", trials=99)
    assert desk.search.remaining == 4
    points = [str(desk.start("a")["values"])]
    desk.complete("a", 0.1)
    again = Desk(tmp_path, search=space, sampler="grid", trials=99)
    assert again.search.remaining == 3
    points += [str(again.start(name)["values"]) for name in "bcd"]
    assert again.start("e") == Searcher.FINISHED
    assert len(set(points)) == 4


def test_several_objectives_have_a_front(tmp_path):
    objectives = (Objective(), Objective(metric="seconds", mode="min"))
    desk = Desk(tmp_path, objectives=objectives, trials=3)
    for name, values in zip("abc", [(0.9, 20.0), (0.8, 10.0), (0.7, 30.0)], strict=True):
        desk.start(name)
        desk.complete(name, *values)
    assert [trial.number for trial in best_trials(desk.study)] == [0, 1]


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("tpe", "asha"), ("cmaes", "hyperband"), ("gp", "median"), ("random", "none"), ("grid", "asha")],
)
def test_every_sampler_and_every_pruner(tmp_path, sampler, pruner):
    space = {**SEARCH, "optim.lr": Parameter(low=0.1, high=0.5, step=0.1)}
    desk = Desk(tmp_path, search=space, sampler=sampler, pruner=pruner, trials=5)
    for number in range(5):
        values = desk.start(str(number))["values"]
        desk.report(str(number), 1, values["optim.lr"])
        desk.complete(str(number), values["optim.lr"])
    assert desk.states()[:5] == ["COMPLETE"] * 5
    assert best_trials(desk.study)[0].values[0] == max(t.values[0] for t in desk.ended)


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
def test_pruners_give_up_what_is_worse_than_all_before(tmp_path, pruner):
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


PLANE = {f"optim.{name}": Parameter(low=0.0, high=1.0) for name in ("lr", "momentum")}


@pytest.mark.parametrize(("sampler", "trials", "last"), [("tpe", 26, 4), ("cmaes", 26, 4), ("gp", 14, 4)])
def test_samplers_learn_once_they_have_seen_enough(tmp_path, sampler, trials, last):
    desk = Desk(tmp_path, search={**PLANE, "schedule.name": NAMES}, sampler=sampler, trials=trials)
    found = []
    for number in range(trials):
        values = desk.start(str(number))["values"]
        found.append(-((values["optim.lr"] - 0.3) ** 2) - (values["optim.momentum"] - 0.6) ** 2)
        desk.complete(str(number), found[-1])
    assert desk.states() == ["COMPLETE"] * trials
    assert sum(found[-last:]) / last > sum(found[:8]) / 8


def test_what_ray_tune_writes_down_of_the_search_does_not_tell_where_the_study_is(tmp_path):
    desk = Desk(tmp_path)
    assert b"study.db" not in ray.cloudpickle.dumps(desk.search)


def test_a_study_that_should_be_there_and_is_not(tmp_path):
    desk = Desk(tmp_path)
    uri = f"sqlite:///{tmp_path / 'study.db'}"
    assert open_study(desk.spec, "test", uri, total_steps=1, resume=True).study_name == "test"
    with pytest.raises(ValueError, match="it holds no other: name the one that the sweep was started with"):
        open_study(desk.spec, "other", uri, total_steps=1, resume=True)


def test_a_storage_that_cannot_be_opened(tmp_path):
    spec = Spec(search=SEARCH)
    with pytest.raises(ValueError, match=r"sweep\.storage: the study cannot be opened") as caught:
        open_study(spec, "test", f"sqlite:///{tmp_path}/missing/study.db", total_steps=1)
    assert "\n" not in str(caught.value)
