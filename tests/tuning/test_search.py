"""The search without Ray: what it hands out, when it gives a trial up, what it leaves after a crash."""

import math
import warnings

import ray
from ray.tune.search import Searcher

from rayface.training.run_directory import RunDirectory
from rayface.tuning.search_space import Parameter
from rayface.tuning.study import best_trials
from rayface.tuning.sweep_directory import SweepDirectory
from tests.tuning.search_desk import NAMES, SEARCH, Desk


def test_trials_that_fail_end_with_a_reason_and_the_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "seconds", lambda self: 7.0)
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
    assert desk.ended[0].user_attrs == {"run": str(tmp_path / "trials" / "0000"), "seconds": 1.0}
    assert [trial.user_attrs["seconds"] for trial in desk.ended[1:]] == [7.0] * 3
    assert reasons[1:3] == [
        "TrainingStoppedError: the loss is nan",
        "its process was killed more than train.max_failures times",
    ]
    assert [trial.number for trial in best_trials(desk.study)] == [0]


def fail(desk, name, reason):
    desk.search.on_trial_complete(name, {"state": "FAIL", "reason": reason})


def test_search_whose_first_trials_fail_alike_ends_and_can_be_resumed(tmp_path):
    desk = Desk(tmp_path, trials=9)
    for name in "abc":
        job = desk.start(name)
        fail(desk, name, f"OSError: {tmp_path}/trials/{job['trial']:04d}/x: no such file")  # the same but for where
    assert desk.search.failing_alike == "OSError: its run/x: no such file"
    assert desk.start("d") == Searcher.FINISHED
    again = Desk(tmp_path, trials=9)
    assert again.search.remaining == 6
    assert isinstance(again.start("e"), dict)


def test_search_whose_first_trials_failed_alike_waits_for_a_running_one(tmp_path):
    desk = Desk(tmp_path, trials=9)
    for name in "abcd":
        desk.start(name)
    for name in "abc":
        fail(desk, name, "OSError: no such file")
    assert desk.start("e") is None
    desk.complete("d", 0.5)
    assert isinstance(desk.start("e"), dict)


def test_search_whose_first_trials_fail_in_several_ways_goes_on(tmp_path):
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


def test_pruned_trial_restarted_in_another_process_is_asked_to_stop_again(tmp_path):
    desk = Desk(tmp_path, trials=4, pruner="asha", min_steps=10, reduction_factor=2)
    for name, value in zip("ab", (0.9, 0.1), strict=True):
        desk.start(name)
        desk.report(name, 10, value)
    run = RunDirectory(tmp_path / "trials" / "0001")
    run.clear_stop_request()
    desk.report("b", 11, 0.1)
    assert run.stop_requested()


def test_trial_that_falls_behind_is_asked_to_stop(tmp_path):
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


def test_resumed_trial_that_reports_its_values_again_causes_no_warning(tmp_path):
    desk = Desk(tmp_path, trials=4, pruner="median")
    desk.start("a")
    desk.report("a", 1, 0.5)
    again = Desk(tmp_path, trials=4, pruner="median")
    again.start("b")
    with warnings.catch_warnings(action="error"):
        again.report("b", 1, 0.5)
        again.report("b", 2, 0.6)
    again.complete("b", 0.6)
    assert again.ended[0].intermediate_values == {1: 0.5, 2: 0.6}


def test_search_after_a_crash_resumes_interrupted_trials_first_under_their_numbers(tmp_path):
    desk = Desk(tmp_path, trials=5)
    jobs = [desk.start(name) for name in "abc"]
    desk.complete("b", 0.5)
    again = Desk(tmp_path, trials=5)
    assert again.search.remaining == 2 + 2
    taken = [again.start(name) for name in "vwxy"]
    assert taken[:2] == [jobs[0], jobs[2]]
    assert [job["trial"] for job in taken[2:]] == [3, 4]
    assert again.start("z") == Searcher.FINISHED
    for name in "vwxy":
        again.complete(name, 0.4)
    assert again.states() == ["COMPLETE"] * 5
    assert [trial.number for trial in again.ended] == [0, 2, 3, 4]


def test_trials_stopped_with_the_sweep_are_left_to_resume(tmp_path):
    desk = Desk(tmp_path, trials=3)
    job = desk.start("a")
    desk.search.stop()
    assert RunDirectory(tmp_path / "trials" / f"{job['trial']:04d}").stop_requested()
    assert desk.start("b") == Searcher.FINISHED
    desk.search.on_trial_complete("a", {"state": "PRUNED"})
    assert desk.states() == ["RUNNING"]
    assert desk.ended == []


def test_study_is_stored_before_a_trial_begins_and_after_each_of_its_results(tmp_path, monkeypatch):
    """From another machine a resume would draw other values under the number of a trial that has begun."""
    desk, stored = Desk(tmp_path, trials=2, pruner="median"), []

    def store(self, *, required=True):
        (trial,) = desk.study.get_trials()
        stored.append((required, trial.state.name, list(trial.params), list(trial.intermediate_values)))

    monkeypatch.setattr(SweepDirectory, "store_study", store)
    desk.start("a")
    for step in (1, 1):
        desk.report("a", step, 0.5)
    desk.complete("a", 0.5)
    keys = list(SEARCH)
    assert stored == [(True, "RUNNING", keys, []), (False, "RUNNING", keys, [1]), (False, "COMPLETE", keys, [1])]


def test_search_whose_directory_another_driver_took_over_stops_its_trials_and_starts_none(tmp_path, monkeypatch):
    desk = Desk(tmp_path, trials=3)
    desk.start("a")
    monkeypatch.setattr(SweepDirectory, "is_lost", lambda self: True)
    assert desk.start("b") == Searcher.FINISHED
    assert RunDirectory(tmp_path / "trials" / "0000").stop_requested()
    assert desk.states() == ["RUNNING"]


def test_stop_of_a_search_leaves_a_trial_that_has_not_begun_alone(tmp_path):
    desk = Desk(tmp_path, trials=3)
    desk.search.suggest("a")
    desk.search.stop()
    assert not (tmp_path / "trials").exists()


def test_trial_that_completes_after_the_stop_of_the_sweep_counts_and_one_that_fails_is_left(tmp_path):
    desk = Desk(tmp_path, trials=3)
    for name in "ab":
        desk.start(name)
    desk.search.stop()
    desk.complete("a", 0.8)
    fail(desk, "b", "its workers were stopped")
    assert desk.states() == ["COMPLETE", "RUNNING"]
    assert [(trial.number, trial.value) for trial in desk.ended] == [(0, 0.8)]


def test_trial_that_completes_and_whose_process_then_fails_is_no_result(tmp_path):
    desk = Desk(tmp_path, trials=3)
    desk.start("a")
    desk.search.on_trial_complete("a", {"state": "COMPLETE", "values": [0.8], "seconds": 1.0}, error=True)
    assert desk.states() == ["FAIL"]


def test_stop_of_a_search_whose_trials_change_meanwhile_asks_all_to_stop(tmp_path, monkeypatch):
    """Ray Tune's thread adds and removes trials."""
    desk, asked = Desk(tmp_path, trials=3), []
    for name in "ab":
        desk.start(name)

    def ask(number):
        asked.append(number)
        desk.search._trials.pop("a", None)

    monkeypatch.setattr(desk.search, "_ask_to_stop", ask)
    desk.search.stop()
    assert asked == [0, 1]


def test_search_after_the_time_budget_starts_no_trial(tmp_path):
    assert Desk(tmp_path, trials=3, time_budget=1e-9).start("a") == Searcher.FINISHED
    assert isinstance(Desk(tmp_path, trials=3, time_budget=3600).start("a"), dict)


def test_grid_search_over_a_crash_suggests_every_point_once(tmp_path):
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


def test_search_pickled_by_ray_tune_does_not_hold_the_uri_of_the_study(tmp_path):
    desk = Desk(tmp_path)
    assert b"study.db" not in ray.cloudpickle.dumps(desk.search)
