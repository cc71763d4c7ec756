"""The dealer without Ray: which windows a turn holds, and who gets its blocks when."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rayface.data.streaming import dealer as module
from rayface.data.streaming import scheduling_rest
from rayface.data.streaming.dealer import (
    Dealer,
    Stream,
    _early_steps,
    _executions,
    _read_ahead_bytes,
)
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.scheduling_rest import SchedulingRest
from rayface.storage import DataError

ORDER = SampleOrder(num_samples=80, batch_size=4, window_images=8, chunk_images=1)  # windows of two steps


def stream(**changes: Any) -> Stream:
    settings = {
        "samples": None,
        "order": ORDER,
        "image_size": 8,
        "world_size": 2,
        "steps": (0, 20),
        "readers": 0,
        "reserved": {},
        "block_images": 8,
        "turns_per_execution": 4,
        "turns_ahead": 2,
        "early": True,
        "local": False,
    }
    return Stream(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "nodes", "turns"),
    [
        ({}, 1, [[range(n, n + 1) for n in range(first, min(first + 4, 10))] for first in (0, 4, 8)]),
        ({"block_images": 20}, 1, [[range(0, 3), range(3, 6), range(6, 9), range(9, 10)]]),
        ({"block_images": 8}, 3, [[range(0, 3), range(3, 6), range(6, 9), range(9, 10)]]),
        ({"steps": (5, 9)}, 1, [[range(2, 3), range(3, 4), range(4, 5)]]),
        ({"steps": (7, 7)}, 1, []),
    ],
)
def test_executions_of_any_steps_cover_their_windows_in_turns(
    changes: dict[str, Any], nodes: int, turns: list[list[range]]
) -> None:
    assert list(_executions(stream(**changes), nodes)) == turns


@pytest.mark.parametrize(
    ("start", "block_images", "nodes", "early"),
    [
        (0, 8, 1, range(0, 2)),
        (0, 8, 2, range(0, 4)),
        (1, 9, 1, range(1, 4)),  # of the third step, some images
        (2, 12, 1, range(2, 5)),
        (3, 12, 1, None),  # of the window's last five steps, three
        (0, 20, 1, None),
        (19, 4, 1, None),
    ],
)
def test_early_steps_are_at_most_half_of_what_is_left_of_their_window(
    start: int, block_images: int, nodes: int, early: range | None
) -> None:
    order = SampleOrder(num_samples=80, batch_size=4, window_images=32, chunk_images=1)  # windows of 8, 8 and 4 steps
    of = stream(order=order, steps=(start, 20), block_images=block_images)
    assert _early_steps(of, nodes) == early
    assert _early_steps(replace(of, early=False), nodes) is None
    steps = len(early or ())
    assert _early_steps(replace(of, steps=(start, start + steps)), nodes) is None  # faults of the others would be lost
    assert _early_steps(replace(of, steps=(start, start + steps + 1)), nodes) == early


@pytest.fixture
def deal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of (turns, error at the end) -> dealer; its blocks are named by turn and node."""
    monkeypatch.setattr(module.ray.actor, "exit_actor", lambda: None)

    def deal(turns: int, error: BaseException | None = None) -> Dealer:
        found = Dealer(stream())

        def blocks() -> Iterator[dict[str, str]]:
            for turn in range(turns):
                yield {node: f"{turn} on {node}" for node in sorted(set(found._node_of.values()))}
            if error is not None:
                raise error

        monkeypatch.setattr(found, "_blocks", blocks)
        return found

    return deal


def take_all(dealer: Dealer, rank: int, node: str) -> list[Any]:
    found = []
    while (block := dealer.take(rank, node, len(found))) is not None:
        found.append(*block)
    return found


def test_dealer_of_two_nodes_gives_every_rank_the_blocks_of_its_node(deal: Any) -> None:
    dealer = deal(3)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(take_all, [dealer] * 2, range(2), ["a", "b"])
    assert one == ["0 on a", "1 on a", "2 on a"]
    assert other == ["0 on b", "1 on b", "2 on b"]
    assert dealer._turns == {}  # nothing is kept after the last rank took it


def test_dealer_whose_readers_fail_raises_their_error_on_every_rank(deal: Any) -> None:
    dealer = deal(1, DataError("all images of a window are corrupt"))
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(take_all, dealer, rank, "a") for rank in range(2)]:
            with pytest.raises(DataError, match="all images of a window are corrupt"):
                each.result()


def test_dealer_stops_reading_once_all_ranks_are_done(deal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(module.ray.actor, "exit_actor", lambda: ended.append(True))
    dealer = deal(100)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(dealer.take, range(2), ["a", "a"], [0, 0])) == [["0 on a"]] * 2
    dealer.done(0)
    assert ended == []
    dealer.done(1)
    assert ended == [True]
    assert not dealer._thread.is_alive()
    assert dealer._turns == {}  # the second turn, which no rank requested, was not taken from Ray Data
    assert dealer.take(0, "a", 5) is None


def test_dealer_whose_ranks_are_done_before_they_took_a_turn_ends(deal: Any) -> None:
    dealer = deal(1)
    dealer.done(0)
    dealer.done(1)
    assert dealer.take(0, "a", 0) is None


def test_dealer_gives_a_rank_that_is_ahead_its_turn_whatever_the_others_request(deal: Any) -> None:
    dealer = deal(3)
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(dealer.take, 0, "a", turn) for turn in (0, 1)]
        with dealer._changed:
            assert dealer._changed.wait_for(lambda: dealer._asked == 1, 30)
        try:
            assert dealer.take(1, "a", 0) == ["0 on a"]
            assert [each.result(30) for each in ahead] == [["0 on a"], ["1 on a"]]
        finally:
            dealer.done(0)
            dealer.done(1)


def test_dealer_answers_the_open_requests_of_a_rank_that_is_done(deal: Any) -> None:
    dealer = deal(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(dealer.take, 0, "a", 0)  # for rank 1
        dealer.done(0)
        try:
            assert waiting.result(30) is None
        finally:
            dealer.done(1)
    failed = deal(0, DataError("all images of a window are corrupt"))
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(take_all, failed, rank, "a") for rank in range(2)]:
            assert isinstance(each.exception(), DataError)
    failed.done(0)
    assert failed.take(0, "a", 1) is None


@pytest.mark.parametrize("local", [True, False])
def test_dealer_of_a_ray_of_its_own_executes_data_locally(
    deal: Any, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(module, "schedule_promptly", lambda: None)
    monkeypatch.setattr(module, "execute_data_locally", lambda: called.append(True))
    dealer = deal(0)
    dealer._stream = stream(local=local)
    dealer._run()
    assert called == [True] * local


def test_blocks_of_a_stream_are_read_in_executions_with_early_steps_in_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = SampleOrder(num_samples=80, batch_size=4, window_images=32, chunk_images=1)  # windows of 8, 8 and 4 steps
    dealer, reads = Dealer(stream(order=order, world_size=3, turns_per_execution=2, block_images=4)), []

    def read(stream: Stream, turns: list[range], nodes: list[list[int]], early: range | None) -> Iterator[int]:
        reads.append((turns, nodes, early))
        count = (len(turns) + (early is not None)) * len(nodes)
        return iter(range(100 * len(reads), 100 * len(reads) + count))

    monkeypatch.setattr(module, "_read", read)
    dealer._node_of = {2: "a", 1: "b", 0: "a"}
    found = list(dealer._blocks())
    assert reads == [
        ([range(0, 1), range(1, 2)], [[0, 2], [1]], range(0, 2)),
        ([range(2, 3)], [[0, 2], [1]], None),
    ]
    assert found == [{"a": first, "b": first + 1} for first in (100, 102, 104, 200)]


def test_rounds_without_progress_last_longer_each_time_unless_the_loop_waited_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, slept = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(round(seconds, 6))

    monkeypatch.setattr(scheduling_rest, "time", SimpleNamespace(sleep=sleep, perf_counter=lambda: now))
    metrics = SimpleNamespace(
        num_tasks_submitted=0, num_task_outputs_generated=0, num_tasks_finished=0, num_outputs_taken=0
    )
    executor, rest = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)]), SchedulingRest()
    for moved, waited in ((1, 0), (0, 0), (0, 0.0005), (0, 0), (1, 0), (0, 0), (0, 0.1), (0, 0.1), (0, 0)):
        metrics.num_tasks_finished += moved
        now += waited
        rest.on_execution_step(executor)
    assert slept == [0.001, 0.0015, 0.004, 0.001, 0.002]
    for _ in range(20):
        rest.on_execution_step(executor)
    assert slept[-1] == 0.05
    for counter in vars(metrics):  # progress of any kind
        setattr(metrics, counter, 9)
        slept.clear()
        rest.on_execution_step(executor)
        rest.on_execution_step(executor)
        assert slept == [0.001], counter


def test_read_ahead_of_any_tasks_is_a_turn_each_and_those_that_ranks_hold() -> None:
    settings = stream(image_size=6, turns_ahead=2)
    turns = next(_executions(settings, 1))
    assert _read_ahead_bytes(settings, turns, tasks=2) == (2 + 1 + 2) * (2 * 4) * (6 * 6 * 3)
