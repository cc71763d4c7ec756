"""Errors of tasks and actors on a real Ray reach the driver as their cause."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from rayface.ray_tasks import map_unordered, map_unordered_by_actors, quiet_data
from rayface.storage import DataError

pytestmark = pytest.mark.usefixtures("local_ray")


def fail(part: int) -> dict[str, Any]:
    if part == 1:
        raise KeyError(f"no part {part}\nof two lines")
    return {"part": part}


class Refusing:
    def __init__(self, text: str) -> None:
        raise ValueError(text)


def test_map_unordered_with_a_failing_task_raises_its_error():
    with quiet_data(False), pytest.raises(RuntimeError, match=r"^a task failed: KeyError: .no part 1.nof two lines"):
        list(map_unordered(fail, [1], "fail"))


def test_map_unordered_by_actors_that_cannot_start_raises_their_error():
    options = {"actors": 1, "num_cpus": 1, "num_gpus": 0}
    parts = map_unordered_by_actors(Refusing, {"text": "model m: is another one"}, [1], "refuse", **options)
    with quiet_data(False), pytest.raises(DataError, match=r"^model m: is another one$"):
        list(parts)


class Counting:
    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def __call__(self, part: int) -> dict[str, Any]:
        for _ in range(3):
            self._count(10)
            time.sleep(1.5)
        return {"part": part}


def test_map_unordered_by_actors_that_count_rows_shows_them_before_a_part_is_done(recorder):
    options = {"actors": 1, "num_cpus": 1, "num_gpus": 0, "rows": 30, "count_rows": True}
    with quiet_data(False):
        (found,) = map_unordered_by_actors(Counting, {}, [1], "count", **options)
    assert found == {"part": 1}
    assert {total for _, _, total in recorder.advances} == {30}
    assert max(done for _, done, _ in recorder.advances) >= 10
