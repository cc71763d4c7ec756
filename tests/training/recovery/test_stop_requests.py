"""How often workers look for a request to stop, by the time that their steps take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayface.config import TrainConfig
from rayface.training.distributed import World
from rayface.training.recovery import stop_requests
from rayface.training.recovery.stop_requests import StopRequests
from rayface.training.run_directory import RunDirectory

ALONE = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(stop_requests.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.001, [1, 11, 21, 31]), (1.0, [1, 8, 15, 22]), (3.0, [1, 3, 5, 7]), (9.0, [1, 2, 3, 4])]
)
def test_requests_are_looked_for_four_times_within_the_grace_time(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, seconds: float, steps: list[int]
) -> None:
    run, looked = RunDirectory(tmp_path), []
    stops = StopRequests(run, ALONE, TrainConfig(log_every=10, grace_seconds=30))
    for step in range(1, 32):
        clock[0] += seconds
        # A thread that another test left may look for requests of its own run.
        asked = lambda asked, step=step: asked is run and bool(looked.append(step))  # noqa: E731
        monkeypatch.setattr(RunDirectory, "stop_requested", asked)
        assert not stops.asked()
    assert looked[:4] == steps


@pytest.mark.parametrize("request_it", [RunDirectory.request_stop, RunDirectory.request_drain])
def test_request_of_a_run_with_slow_steps_is_seen_after_the_next_step(
    tmp_path: Path, clock: list[float], request_it
) -> None:
    run = RunDirectory(tmp_path)
    stops = StopRequests(run, ALONE, TrainConfig(log_every=10, grace_seconds=30))
    for _ in range(4):
        clock[0] += 9
        assert not stops.asked()
    request_it(run)
    clock[0] += 9
    assert stops.asked()


def test_clear_after_a_stop_drops_a_drain_too_which_alone_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    stops = StopRequests(run, ALONE, TrainConfig())
    run.request_drain()
    stops.clear()
    assert run.drain_requested()  # the controller's to clear
    run.request_stop()
    stops.clear()
    assert not run.stop_requested()
    assert not run.drain_requested()


def test_clear_of_another_rank_leaves_the_stop_to_rank_0(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.request_stop()
    StopRequests(run, replace(ALONE, rank=1, size=2), TrainConfig()).clear()
    assert run.stop_requested()
