"""Rows fetched while the backbone runs: used where they fit, never half written, never of use to another loss."""

import threading

import pytest
import torch
from torch import Tensor

from rayface.heads import CosFace, PartialFC
from rayface.heads.class_centers import ClassCenters
from rayface.heads.prefetch import RowPrefetch

C, D, B = 300, 16, 24


def make(**changes) -> PartialFC:
    """Return a small head in host memory."""
    settings = {"sample_rate": 0.2, "host_memory": True}
    return PartialFC(D, C, CosFace(), **(settings | changes))


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Return embeddings that need a gradient, and labels."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(B, D, generator=generator).requires_grad_(), torch.randint(C, (B,), generator=generator)


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
def test_changes_no_bit(changes: dict, losses_per_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and the same state, and the rows were really used, but not for other labels."""
    used: list[bool] = []
    take = RowPrefetch.take
    monkeypatch.setattr(RowPrefetch, "take", lambda *a: used.append((found := take(*a)) is not None) or found)
    heads = {way: make(**changes) for way in ("never", "each", "wrong")}
    losses = {way: train(head, way, losses_per_step) for way, head in heads.items()}
    assert used == [False] * 4 * losses_per_step + [True] * 4 * losses_per_step + [False] * 4 * losses_per_step
    for way in ("each", "wrong"):
        assert losses[way] == losses["never"]
        for name, tensor in heads["never"].store.moments.items():
            assert torch.equal(heads[way].store.moments[name], tensor)
        assert torch.equal(heads[way].centers, heads["never"].centers)


def test_a_second_fetch_takes_the_memory_of_the_first() -> None:
    """Two losses in flight before either is differentiated: as without."""
    near, far = make(logit_memory=8000), make(logit_memory=8000)
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


def test_an_update_waits_for_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is written while a thread may be reading it."""
    head, gate, order = make(), threading.Event(), []
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


def test_nothing_to_fetch() -> None:
    """In device memory, or with every row in use, it does nothing; wrong labels are named all the same."""
    for head in (make(host_memory=False), make(sample_rate=1.0)):
        head.prefetch(batch(0)[1])
        assert head.fetched_rows(batch(0)[1]) is None
        with pytest.raises(ValueError, match="must be int64"):
            head.prefetch(torch.zeros(3))
        with pytest.raises(ValueError, match="one per embedding"):
            head.prefetch(torch.zeros(3, 2, dtype=torch.int64))


def test_what_the_thread_could_not_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loss that would have used it."""
    head, (x, y) = make(), batch(0)
    monkeypatch.setattr(head, "choose_rows", lambda *a: 1 / 0)
    head.prefetch(y)
    with pytest.raises(ZeroDivisionError):
        head.loss(x, y)
