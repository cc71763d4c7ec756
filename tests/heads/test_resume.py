"""A head that is loaded from the state of any step goes on as the one that was never stopped, bit for bit."""

import itertools
from typing import Any

import pytest
import torch

from rayface.heads import PartialFC, build_margin

STEPS, CLASSES, WIDTH, BATCH = 20, 700, 12, 16
PIECES = {"whole": [16], "two": [8, 8], "uneven": [3, 9, 4]}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "sgd_plain": {"optimizer": "sgd", "momentum": 0.0},
    "adamw": {"optimizer": "adamw"},
}


def head_of(settings: dict[str, Any], margin: str) -> PartialFC:
    # Little memory for logits: the update goes through several blocks.
    given = {"embedding_size": WIDTH, "num_classes": CLASSES, "logit_memory": 20_000, **settings}
    return PartialFC(margin=build_margin(margin), seed=3, **given)


def step_of(head: PartialFC, step: int, pieces: list[int]) -> list[float]:
    """One step in pieces of other sizes at every third step, as where the number of workers changes."""
    draw = torch.Generator().manual_seed(step)
    x, labels = (
        torch.randn(BATCH, head.embedding_size, generator=draw),
        torch.randint(CLASSES, (BATCH,), generator=draw),
    )
    parts = [BATCH] if step % 3 == 0 else pieces
    losses = []
    for part, target in zip(x.split(parts), labels.split(parts), strict=True):
        head.prefetch(target)
        loss = head.loss(part.requires_grad_(), target)
        loss.backward(torch.tensor(len(part) / BATCH))
        losses.append(loss.item())
    head.step(0.1)
    return losses


def copy_of(head: PartialFC) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in head.state().items()}


COMBINATIONS = [
    pytest.param(
        {"storage_dtype": storage, "sample_rate": rate, **OPTIMIZERS[optimizer], **more}, pieces, id="-".join(name)
    )
    for storage, rate, optimizer, pieces, more in itertools.product(
        ("fp32", "bf16"), (0.049, 0.3, 1.0), OPTIMIZERS, PIECES, ({}, {"center_update": "dense"}, {"host_memory": True})
    )
    for name in [(storage, str(rate), optimizer, pieces, *more)]
]


@pytest.mark.parametrize(("settings", "pieces"), COMBINATIONS)
def test_head_resumed_at_each_step_equals_the_one_never_stopped(settings: dict[str, Any], pieces: str) -> None:
    whole = head_of(settings, "elasticface" if settings["sample_rate"] == 0.3 else "curricularface")
    states, losses = [copy_of(whole)], []
    for step in range(STEPS):
        losses.append(step_of(whole, step, PIECES[pieces]))
        states.append(copy_of(whole))
    for start in range(STEPS - 1):
        resumed = head_of(settings, "elasticface" if settings["sample_rate"] == 0.3 else "curricularface")
        resumed.load_state(states[start])
        for step in (start, start + 1):
            assert step_of(resumed, step, PIECES[pieces]) == losses[step]
            for key, value in resumed.state().items():
                wanted = states[step + 1][key]
                assert torch.equal(value, wanted) if isinstance(value, torch.Tensor) else value == wanted, (step, key)


def test_head_resumed_after_a_larger_step_rounds_as_the_one_never_stopped() -> None:
    settings = {"storage_dtype": "bf16", "sample_rate": 0.049, "num_classes": 20_000, "logit_memory": 10**8}
    settings |= {"embedding_size": 64}
    whole = head_of(settings, "cosface")
    step_of(whole, 1, [8, 8])  # two pieces: twice the rows of a whole batch
    state = copy_of(whole)
    step_of(whole, 3, [8, 8])
    resumed = head_of(settings, "cosface")
    resumed.load_state(state)
    step_of(resumed, 3, [8, 8])
    assert torch.equal(resumed.centers, whole.centers)
