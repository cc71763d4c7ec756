"""CenterUpdate: which rows move, and by what."""

import pytest
import torch
from torch import Tensor

from tests.heads.small_head import C, batch, small_head, train


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_center_update_sparse_moves_the_used_rows_only(optimizer: str) -> None:
    """Centers and moments of rows not sampled stay bit for bit; dense moves every row."""
    for mode in ("sparse", "dense"):
        head = small_head(optimizer=optimizer, center_update=mode)
        train(head, 3)
        before = {k: v.clone() for k, v in head.state().items() if isinstance(v, Tensor)}
        head.loss(*batch(9)).backward()
        used = torch.zeros(C, dtype=torch.bool)
        used[head.last_rows()] = True
        assert used.sum() == int(0.2 * C)
        head.step(0.5)
        for name, old in before.items():
            moved = (head.state()[name] != old).any(1)
            assert moved[used].all()
            assert moved[~used].any() == (mode == "dense")


def test_center_update_of_a_scaled_loss_equals_the_plain_one() -> None:
    plain, scaled = small_head(), small_head()
    plain.loss(*batch()).backward()
    (scaled.loss(*batch()) * 1024).backward()
    plain.step(0.5)
    scaled.step(0.5, grad_scale=1024)
    assert torch.allclose(plain.centers, scaled.centers, rtol=1e-6, atol=1e-9)


def test_center_update_discarded_leaves_no_trace() -> None:
    """The step is not counted either."""
    head, other = small_head(), small_head()
    head.loss(*batch(7)).backward()
    head.discard()
    assert train(head, 2) == train(other, 2)
