"""The published memory and speed table, and the constants fitted to it."""

import pytest

from rayface.plan.memory import DENSE_LOGIT_COPIES, GPU_OVERHEAD
from rayface.plan.published import as_table, fit, table_rows


def test_published_table_with_fitted_constants_is_met():
    """Every row under 15 %: those that two constants were fitted to, the rest, and two at another batch."""
    rows = table_rows()
    assert len(rows) == 26
    for row in rows:
        assert abs(row.error) < 0.15, row
    unfitted = [abs(row.error) for row in rows if row.fitted is None]
    assert max(unfitted) < 0.07
    assert sum(unfitted) / len(unfitted) < 0.025
    assert [row["error"] for row in as_table(rows)][:2] == ["-1.3 %", "-1.5 %"]


def test_fit_of_the_published_table_gives_both_constants():
    overhead, copies = fit()
    assert copies == DENSE_LOGIT_COPIES
    assert pytest.approx(overhead, rel=0.001) == GPU_OVERHEAD
