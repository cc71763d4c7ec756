"""Class centers in four ranges over three nodes, one of which is lost: the run ends as an undisturbed one."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.fixture import RunFixture, TestCluster
from tests.faults.scenarios import RUNS, check_end, run_scenarios


@pytest.fixture
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """Three nodes with 1, 1 and 2 CPUs, which four workers fill."""
    cluster = TestCluster(
        tmp_path_factory.mktemp("three_nodes"), cpus=(1, 2), settings={"train.num_workers": 4, "train.epochs": 1.2}
    )
    cluster.in_a_hurry = True
    yield cluster
    cluster.close()


def nodes_of(records: list[dict[str, Any]], step: int) -> list[str]:
    """The node of each rank at a step, as it was done last."""
    found = {record["rank"]: record["node"] for record in records if record["step"] == step}
    return [found[rank] for rank in range(len(found))]


@pytest.mark.long
def test_four_workers_on_three_nodes_that_lose_one_end_as_undisturbed(three_nodes: TestCluster) -> None:
    lost = next(scenario for scenario in RUNS["workers"] if scenario.name == "node lost")
    fixture = RunFixture(three_nodes, "lost")
    run_scenarios(fixture, [(1, lost)])
    check_end(fixture, [lost])
    first, last = (nodes_of(fixture.record(), step) for step in (0, 11))
    assert [len(first), len(set(first)), len(set(last))] == [4, 3, 3]
    assert len(set(first) | set(last)) == 4
