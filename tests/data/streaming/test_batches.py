"""Batches of a rank: every image of its rows once, faults with their window."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayface.data.shards.samples import Fault
from rayface.data.streaming import batches
from rayface.data.streaming.batches import train_batches
from rayface.data.streaming.sample_order import SampleOrder, rank_rows
from rayface.data.streaming.windows import RankWindow

ORDER = SampleOrder(num_samples=40, batch_size=4, window_images=12, chunk_images=1)
FAULT = Fault(shard="a.tar", member="k.jpg", offset=3, reason="corrupt")


def windows_of(turns: list[list[int]], rank: int, size: int) -> Iterator[list[RankWindow]]:
    """The windows of each turn, as a rank gets them: the label of an image is its row of the index."""
    for turn in turns:
        parts = []
        for window in turn:
            labels = ORDER.window(window)[:, rank_rows(ORDER.batch_size, rank, size)]
            images = np.broadcast_to(labels[..., None, None, None], (*labels.shape, 2, 2, 3)).astype(np.uint8)
            parts.append(RankWindow(window, 0, images, labels, (FAULT,) if window == 1 else ()))
        yield parts


def read(monkeypatch: pytest.MonkeyPatch, turns: list[list[int]], steps: tuple[int, int], rank: int, size: int) -> Any:
    """Batches of a rank; the dealer is replaced by these turns."""
    monkeypatch.setattr(batches, "_blocks", lambda dealt, rank, node: windows_of(turns, rank, size))
    monkeypatch.setattr(batches, "rank_windows", lambda block, *rest: block)
    stream = SimpleNamespace(order=ORDER, steps=steps, world_size=size, image_size=2)
    return list(train_batches(SimpleNamespace(stream=stream), rank, node="here"))  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", [[[0], [1], [2], [3]], [[0, 1], [2, 3]]])
@pytest.mark.parametrize("steps", [(0, 10), (1, 9), (4, 5)])
def test_train_batches_of_any_steps_are_those_of_the_sample_order(
    monkeypatch: pytest.MonkeyPatch, turns: list[list[int]], steps: tuple[int, int]
) -> None:
    first = ORDER.window_of(steps[0])[0]
    left = [[window for window in turn if window >= first] for turn in turns]
    ranks = [read(monkeypatch, [turn for turn in left if turn], steps, rank, 2) for rank in range(2)]
    assert [batch.step for batch in ranks[0]] == list(range(*steps))
    for own, other in zip(*ranks, strict=True):
        assert np.concatenate([own.labels, other.labels]).tolist() == ORDER.batch(own.step).tolist()
        assert (own.images[:, 0, 0, 0].numpy() == own.labels.numpy()).all()
        assert (own.rows, other.rows) == (slice(0, 2), slice(2, 4))


def test_train_batches_are_copies_so_that_a_block_can_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = list(windows_of([[0]], 0, 1))
    monkeypatch.setitem(globals(), "windows_of", lambda *args: iter(turns))
    ((part,),) = turns
    for batch in read(monkeypatch, [[0]], (0, 3), 0, 1):
        assert not np.shares_memory(batch.images.numpy(), part.images)
        assert not np.shares_memory(batch.labels.numpy(), part.labels)


def test_train_batches_give_the_faults_of_a_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(monkeypatch, [[0], [1], [2], [3]], (0, 10), 0, 1)
    assert [batch.step for batch in found if batch.faults] == [3]
    resumed = read(monkeypatch, [[1], [2], [3]], (4, 10), 0, 1)
    assert [batch.step for batch in resumed if batch.faults] == [4]


@pytest.mark.parametrize(("steps", "early"), [((0, 10), range(2)), ((4, 10), range(1, 2)), ((3, 5), range(1))])
def test_train_batches_of_early_steps_and_their_window_are_each_step_once(
    monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int], early: range
) -> None:
    plain = windows_of

    def with_early(turns: list[list[int]], rank: int, size: int) -> Iterator[list[RankWindow]]:
        for number, (whole,) in enumerate(plain(turns, rank, size)):
            if number == 0:
                taken = slice(early.start, early.stop)
                yield [RankWindow(whole.window, early.start, whole.images[taken], whole.labels[taken], ())]
            yield [whole]

    monkeypatch.setitem(globals(), "windows_of", with_early)
    windows = [[window] for window in range(ORDER.window_of(steps[0])[0], 4)]
    found = read(monkeypatch, windows, steps, 0, 1)
    assert [batch.step for batch in found] == list(range(*steps))
    assert all(batch.labels.tolist() == ORDER.batch(batch.step).tolist() for batch in found)
    assert [batch.step for batch in found if batch.faults] == {0: [3], 4: [5], 3: [4]}[steps[0]]


def test_train_batches_of_windows_out_of_order_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"^rank 0 received window 2 instead of 1: the order was lost$"):
        read(monkeypatch, [[0], [2]], (0, 10), 0, 1)


class Dealer:
    """Three turns of blocks; a rank that stops says so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.ended: list[int] = []
        self.take = SimpleNamespace(remote=self._take)
        self.done = SimpleNamespace(remote=self.ended.append)

    def _take(self, rank: int, node: str, turn: int) -> list[pa.Table] | None:
        self.asked.append(turn)
        return [pa.table({"turn": [turn]})] if turn < 3 else None


@pytest.mark.parametrize("taken", [1, 3])
def test_blocks_of_a_dealer_come_in_turn_and_the_rank_says_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(batches.ray, "get", lambda value: value)
    monkeypatch.setattr(batches.ray, "is_initialized", lambda: True)
    others = {*threading.enumerate()}  # of streams of other tests, which may wait for a Ray that has ended
    dealer = Dealer()
    dealt = SimpleNamespace(dealer=dealer, stream=SimpleNamespace(turns_ahead=2))
    blocks = batches._blocks(dealt, 0, "here")  # type: ignore[arg-type]
    found = [next(blocks)["turn"][0].as_py() for _ in range(taken)]
    if taken == 3:
        assert next(blocks, None) is None
    else:
        blocks.close()
    for thread in {*threading.enumerate()} - others:
        if thread.name.startswith("blocks"):  # it would call the real ray.get, which starts a Ray
            thread.join()
    assert found == list(range(taken))
    assert set(range(taken)) <= set(dealer.asked) <= set(range(taken + 3))  # at most two turns ahead
    assert dealer.ended == [0]


def test_blocks_are_requested_while_the_first_is_read_and_left_when_closed_after_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were a block fetched then, or the dealer called, ray.get would start a Ray of its own."""
    asked, answers, fetched = threading.Semaphore(0), [threading.Event() for _ in range(3)], []

    def get(value: Any) -> Any:
        if isinstance(value, pa.Table):
            fetched.append(value["turn"][0].as_py())
        else:
            asked.release()
            assert answers[value[0]["turn"][0].as_py()].wait(30)
        return value

    monkeypatch.setattr(batches.ray, "get", get)
    monkeypatch.setattr(batches.ray, "is_initialized", lambda: False)
    others, dealer = {*threading.enumerate()}, Dealer()
    dealt = SimpleNamespace(dealer=dealer, stream=SimpleNamespace(turns_ahead=2))
    blocks = batches._blocks(dealt, 0, "here")  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, blocks)
        try:
            assert all(asked.acquire(timeout=30) for _ in range(3))
        finally:
            answers[0].set()
        first.result()
    blocks.close()
    for answer in answers:
        answer.set()
    for thread in {*threading.enumerate()} - others:
        thread.join()
    assert (fetched, dealer.ended) == ([0], [])
