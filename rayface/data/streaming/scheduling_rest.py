"""Pauses of Ray Data's scheduling loop while readers are ahead of training."""

import time
from typing import Any

from rayface.ray_internals.data import ExecutionCallback

_SHORTEST_REST, _LONGEST_REST = 1e-3, 0.05  # seconds


class SchedulingRest(ExecutionCallback):
    """Makes rounds of Ray Data's scheduling loop without progress last a minimum time, longer each time.

    Otherwise the loop polls without a pause while readers are ahead of training, which they always are: it used 29 %
    of a core while two workers trained on two loaded cores (Ray 2.60). A round that waited for a task's next block,
    as all do when training is ahead, is not made longer: the loop would start the next task later.
    """

    def __init__(self) -> None:
        self._before: list[tuple[int, ...]] = []
        self._seconds = _SHORTEST_REST
        self._began = time.perf_counter()

    def on_execution_step(self, executor: Any) -> None:
        now = [_moved(operator.metrics) for operator in executor._topology]
        lasted = time.perf_counter() - self._began
        if now != self._before:
            self._before, self._seconds = now, _SHORTEST_REST
        elif lasted < self._seconds:
            time.sleep(self._seconds - lasted)
            self._seconds = min(2 * self._seconds, _LONGEST_REST)
        self._began = time.perf_counter()


def _moved(metrics: Any) -> tuple[int, ...]:
    return (
        metrics.num_tasks_submitted,
        metrics.num_task_outputs_generated,
        metrics.num_tasks_finished,
        metrics.num_outputs_taken,
    )
