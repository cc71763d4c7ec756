"""Prefetched rows: used where they are valid, never half written, never used by another loss."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rayface.heads import PartialFC, prefetch
from rayface.heads.class_centers import ClassCenters, Workspace
from rayface.heads.prefetch import RowPrefetch
from tests.heads.small_head import batch, small_head


def head_in_host_memory(**changes) -> PartialFC:
    return small_head(**({"host_memory": True} | changes))


def train(head: PartialFC, prefetch: str, losses_per_step: int = 1) -> list[float]:
    """Return the losses of four steps; prefetch: "never", "each", or "wrong" (labels of another batch)."""
    losses = []
    for step in range(4):
        for number in range(step * losses_per_step, (step + 1) * losses_per_step):
            x, y = batch(number)
            if prefetch != "never":
                head.prefetch(y if prefetch == "each" else y.roll(1))
            value = head.loss(x, y)
            value.backward()
            losses.append(value.item())
        head.step(0.5)
    return losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw"},
        {"storage_dtype": "bf16"},
        {"compute_dtype": "bf16"},
        {"center_update": "dense"},
        {"logit_memory": 8000},
    ],
)
@pytest.mark.parametrize("losses_per_step", [1, 2])
def test_loss_with_prefetched_rows_changes_no_bit(
    changes: dict, losses_per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are really used, but not for other labels."""
    used: list[bool] = []
    take = RowPrefetch.take
    monkeypatch.setattr(RowPrefetch, "take", lambda *a: used.append((found := take(*a)) is not None) or found)
    heads = {way: head_in_host_memory(**changes) for way in ("never", "each", "wrong")}
    losses = {way: train(head, way, losses_per_step) for way, head in heads.items()}
    assert used == [False] * 4 * losses_per_step + [True] * 4 * losses_per_step + [False] * 4 * losses_per_step
    for way in ("each", "wrong"):
        assert losses[way] == losses["never"]
        for name, tensor in heads["never"].store.moments.items():
            assert torch.equal(heads[way].store.moments[name], tensor)
        assert torch.equal(heads[way].centers, heads["never"].centers)


def test_prefetch_before_the_backward_of_the_first_loss_changes_nothing() -> None:
    """The second fetch takes the memory of the first."""
    near, far = head_in_host_memory(logit_memory=8000), head_in_host_memory(logit_memory=8000)
    for head in (near, far):
        values = []
        for number in (0, 1):
            x, y = batch(number)
            if head is far:
                head.prefetch(y)
            values.append(head.loss(x, y))
        for value in values:
            value.backward()
        head.step(0.5)
    assert torch.equal(near.centers, far.centers)


@pytest.mark.parametrize("load", ["load_state", "load_centers"])
def test_prefetch_before_other_centers_are_loaded_is_not_used(load: str) -> None:
    x, y = batch(0)
    centers = torch.randn(300, 16, generator=torch.Generator().manual_seed(3))
    losses = []
    for prefetched in (True, False):
        head = head_in_host_memory()
        if prefetched:
            head.prefetch(y)
            head._prefetch._pending.found.result()  # the rows have been read
        getattr(head, load)({**head.state(), "centers": centers} if load == "load_state" else centers)
        losses.append(head.loss(x, y).item())
    assert losses[0] == losses[1]


def test_step_during_a_prefetch_waits_for_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is written while a thread may be reading it."""
    head, gate, order = head_in_host_memory(), threading.Event(), []
    x, y = batch(0)
    head.loss(x, y).backward()
    choose, write = head.choose_rows, ClassCenters.update

    def slowly(*arguments) -> Tensor | None:
        gate.wait(30)
        order.append("read")
        return choose(*arguments)

    monkeypatch.setattr(head, "choose_rows", slowly)
    monkeypatch.setattr(ClassCenters, "update", lambda *a: order.append("write") or write(*a))
    head.prefetch(batch(1)[1])
    threading.Timer(0.05, gate.set).start()
    head.step(0.5)
    assert order == ["read", "write"]


def test_prefetch_in_device_memory_or_of_all_rows_fetches_nothing() -> None:
    """Labels of another type or shape raise all the same."""
    for head in (head_in_host_memory(host_memory=False), head_in_host_memory(sample_rate=1.0)):
        head.prefetch(batch(0)[1])
        assert head.fetched_rows(batch(0)[1]) is None
        with pytest.raises(ValueError, match="must be int64"):
            head.prefetch(torch.zeros(3))
        with pytest.raises(ValueError, match="one per embedding"):
            head.prefetch(torch.zeros(3, 2, dtype=torch.int64))


def test_prefetch_of_a_gpu_makes_it_the_current_device_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread is at GPU 0 and would open a context there, on every rank."""
    device, found = torch.device("cuda", 3), []
    stream = SimpleNamespace(device=device, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append((device, threading.current_thread())))
    monkeypatch.setattr(RowPrefetch, "_fetch", lambda self, choose: threading.current_thread())
    centers = SimpleNamespace(device=device)
    prefetch = RowPrefetch(centers)
    prefetch.start(torch.arange(3), (0, 0), lambda: torch.arange(3))
    assert found == [(device, prefetch._pending.found.result())]


class Stream:
    """A stream of a GPU whose work is done at once, or as late as possible: when somebody waits for it."""

    device = torch.device("cuda", 0)

    def __init__(self, *, late: bool) -> None:
        self._late, self.waiting = late, list[Callable[[], None]]()

    def do(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)
        if not self._late:
            self.synchronize()

    def wait_stream(self, other: "Stream") -> None:
        """Nothing of the host waits: a later work of this stream does."""
        before, other.waiting = other.waiting, list[Callable[[], None]]()

        def once() -> None:
            while before:
                before.pop(0)()

        other.waiting.append(once)
        self.do(once)

    def synchronize(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


@pytest.mark.parametrize("late", [True, False], ids=["late copies", "early copies"])
def test_prefetch_on_a_stream_gives_each_loss_its_rows(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """The pinned buffer is filled when the copy out of it is done, and the GPU's when the last loss has read it."""
    training, side = Stream(late=True), Stream(late=late)
    copy_ = Tensor.copy_

    def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not non_blocking:
            return copy_(target, source)
        side.do(lambda: copy_(target, source))
        return target

    monkeypatch.setattr(Tensor, "copy_", copy)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(prefetch, "Workspace", lambda device, pinned=False: Workspace(torch.device("cpu")))
    values, read = torch.arange(24.0).view(12, 2), list[Tensor]()
    fetching = RowPrefetch(SimpleNamespace(device=Stream.device, values=values))  # type: ignore[arg-type]
    labels, wanted = torch.arange(3), [torch.tensor([first, first + 1, 11]) for first in range(4)]
    for step, rows in enumerate(wanted):
        fetching.start(labels, (step, 0), lambda rows=rows: rows)
        found = fetching.take(labels, (step, 0))
        assert found is not None
        centers = found.centers
        training.do(lambda centers=centers: read.append(centers.clone()))  # a kernel of the loss
    training.synchronize()
    assert torch.equal(torch.stack(read), values[torch.stack(wanted)])


def test_prefetch_that_failed_raises_at_the_next_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    head, (x, y) = head_in_host_memory(), batch(0)
    monkeypatch.setattr(head, "choose_rows", lambda *a: 1 / 0)
    head.prefetch(y)
    with pytest.raises(ZeroDivisionError):
        head.loss(x, y)
