"""Faults injected into runs on a real cluster of two nodes; the runs end as an undisturbed one."""

import pytest

from tests.faults.fixture import RunFixture
from tests.faults.scenarios import RUNS, check_end, run_scenarios


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.long
def test_run_with_injected_faults_ends_as_an_undisturbed_run(cluster, name):
    """As far as its settings ask for that: see Scenario.different and Scenario.lost."""
    cluster.in_a_hurry = True
    fixture = RunFixture(cluster, name)
    run_scenarios(fixture, list(enumerate(RUNS[name])))
    check_end(fixture, RUNS[name])
