"""The plateau schedule against rates counted by hand."""

import pytest

from tests.training.schedules.schedule_runs import build, rates, sgd


def test_plateau_without_progress_lowers_the_rate_until_decays_are_used_up():
    optimizer = sgd()
    options = {"alpha": 1.0, "tolerance": 0.1, "decay": 10.0, "max_decays": 2}  # tolerance: 3 steps of 30
    schedule = build("plateau", optimizer, 30, 10, **options)
    # Its best at step 2, hardly better at 3; four steps without progress lower the rate for step 7 and then for 11.
    used = rates(schedule, optimizer, [9.0, 8.0, 7.0, 6.9999, *[7.5] * 20])
    assert used == pytest.approx([0.2] * 7 + [0.02] * 4 + [0.002] * 13)
