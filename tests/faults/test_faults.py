"""Faults strike runs on a real cluster of two nodes; what is left is what a run has that nothing disturbs."""

import pytest
from fault_scenarios import RUNS, check_end, play
from fault_stage import Stage


@pytest.mark.parametrize("name", RUNS)
def test_a_run_struck_by_faults_one_after_the_other_ends_as_if_nothing_had_been(rig, name):
    """As far as its settings ask for that: see Scenario.different and Scenario.lost."""
    rig.in_a_hurry = True
    stage = Stage(rig, name)
    play(stage, list(enumerate(RUNS[name])))
    check_end(stage, RUNS[name])
