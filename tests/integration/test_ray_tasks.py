"""Errors of tasks and actors on a real Ray: the user reads the cause."""

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


def test_an_error_in_a_task_reaches_the_driver_as_its_cause():
    with quiet_data(False), pytest.raises(RuntimeError, match=r"^a task failed: KeyError: .no part 1.nof two lines"):
        list(map_unordered(fail, [1], "fail"))


def test_an_error_in_the_making_of_an_actor_reaches_the_driver_as_the_users():
    options = {"actors": 1, "num_cpus": 1, "num_gpus": 0}
    parts = map_unordered_by_actors(Refusing, {"text": "model m: is another one"}, [1], "refuse", **options)
    with quiet_data(False), pytest.raises(DataError, match=r"^model m: is another one$"):
        list(parts)
