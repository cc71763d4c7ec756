"""Tables of the evaluation report."""

import pytest

from rayface.evaluation.report import _rates, _table

INTERVAL = "95% interval 30.00% to 50.00%"


@pytest.mark.parametrize(
    ("rates", "row"),
    [
        ({"1e-03": 0.5, "1e-04": 0.25, "1e-05": 0.1}, ("ijb: TAR at FAR 1e-04", "25.00%")),
        (
            {"1e-01": 0.5, "1e-02": 0.4, "1e-03": None},
            ("ijb: TAR at FAR 1e-02", "40.00%, 95% interval 30.00% to 50.00%"),
        ),
        ({"1e-03": None}, ("ijb: TAR", "not measured")),
    ],
)
def test_table_of_a_protocol_without_accuracy_begins_with_its_main_rate(
    rates: dict[str, float | None], row: tuple[str, str]
) -> None:
    own = {"tar_at_far": rates, "tar_at_far_interval": {"1e-02": [0.3, 0.5]}, "num_pairs": 9}
    assert _table({"model": "m", "protocols": {"ijb": own}}) == [row, ("model", "m"), ("ijb: counts", "9 pairs")]


def test_rates_have_a_cell_for_every_column_also_without_an_interval() -> None:
    rates = {"tar_at_far": {"1e-01": 0.5, "1e-02": None}, "tar_at_far_interval": {"1e-01": [0.4, 0.6]}}
    columns, rows = _rates(rates)
    assert columns == ["FAR", "TAR", "threshold", "95% interval"]
    assert rows == [["1e-01", "50.00%", "-", "40.00% to 60.00%"], ["1e-02", "not measured", "-", "-"]]
    columns, rows = _rates({"tar_at_far": {"1e-01": 0.5}})
    assert (columns, rows) == (["FAR", "TAR", "threshold"], [["1e-01", "50.00%", "-"]])
