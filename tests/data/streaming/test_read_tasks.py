"""Read tasks beside training, without a Ray."""

import pytest

from rayface.data.streaming import read_tasks as module
from rayface.data.streaming.read_tasks import read_tasks


@pytest.mark.parametrize(
    ("cluster", "held", "tasks", "cpus"),
    [
        (16, 0, 32, 0.5),
        (16, 9, 14, 0.5),  # the workers of all runs hold theirs
        (4, 3, 2, 0.5),
        (4, 3.5, 2, 0),  # half a CPU that a task waits for may belong to two nodes
        (4, 4, 2, 0),  # two trials of two workers: a task of a CPU would wait for ever, and they for it
        (2, 4, 2, 0),
    ],
)
def test_read_tasks_reserve_only_cpus_that_no_training_holds(
    monkeypatch: pytest.MonkeyPatch, cluster: float, held: float, tasks: int, cpus: float
) -> None:
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": cluster})
    assert read_tasks(0, held) == (tasks, cpus)
    assert read_tasks(3, held) == (3, cpus)
