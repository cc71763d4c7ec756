"""Faults strike runs on a real cluster of two nodes; what is left is what a run has that nothing disturbs."""

import pytest
from fault_scenarios import RUNS, play, workers_of
from fault_stage import EVERY, Stage, outcome

# The others take too long for that and are left to `make faults`; tests of recovery and data play smaller ones.
IN_EVERY_TEST_RUN = ("driver", "tracking")


@pytest.mark.slow
def test_a_run_follows_its_cluster_and_has_every_sample_of_every_step_once(rig):
    scenarios = [scenario for scenario in RUNS["elastic"] if "notice" not in scenario.name]
    rig.in_a_hurry = True
    stage = Stage(rig, "elastic")
    play(stage, list(enumerate(scenarios)))
    found = outcome(stage)  # every metric in MLflow once
    assert (found.repeated, found.lost) == (0, 0)
    assert found.steps_again <= EVERY  # for the one that leaves; none for the one that joins
    assert workers_of(stage) == [2, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_EVERY_TEST_RUN)
def test_a_run_struck_by_faults_one_after_the_other_ends_as_if_nothing_had_been(rig, name):
    stage = Stage(rig, name)
    play(stage, list(enumerate(RUNS[name])))
    found = outcome(stage)
    assert found.losses == [value for _, value in rig.reference.losses]
    assert found.is_undisturbed()
    # a fault costs what was done since the last checkpoint, never more
    assert found.steps_again <= EVERY * len(RUNS[name])
