"""Faults strike runs on a real cluster of two nodes; what is left is what a run has that nothing disturbs."""

import pytest
from fault_scenarios import RUNS, play
from fault_stage import EVERY, Stage, outcome

# The others take too long for that and are left to `make faults`; tests of recovery and data play smaller ones.
IN_EVERY_TEST_RUN = ("driver", "tracking")


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
