"""The measured rates are what `rayface plan --rates` reads."""

import json
from dataclasses import fields

import pytest

from rayface.bench.rates import RatesBench, bench_rates
from rayface.plan.timing import Rates, read_rates


def test_bench_rates_of_two_processes_are_read_by_the_plan(tmp_path) -> None:
    """All rates but the backbone's share, from two processes."""
    found = bench_rates(RatesBench(size=64, megabytes=1))
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(found))
    rates = read_rates(file)
    assert rates.keys() == {field.name for field in fields(Rates)} - {"backbone_efficiency"}
    assert all(rate > 0 for rate in rates.values())
    assert Rates(**rates).link_bandwidth == found["link_bandwidth"]
    with pytest.raises(ValueError, match="megabytes: 0: must be at least 1"):
        bench_rates(RatesBench(megabytes=0))
