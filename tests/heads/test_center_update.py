"""CenterUpdate: which rows move, and by what."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.heads.small_head import C, D, batch, small_head, train
from tests.ranks import run_ranks


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


def test_center_update_of_a_loss_differentiated_twice_has_both_gradients() -> None:
    twice, tripled = small_head(), small_head()
    value = twice.loss(*batch())
    value.backward(retain_graph=True)
    (2 * value).backward()
    (3 * tripled.loss(*batch())).backward()
    for head in (twice, tripled):
        head.step(0.5)
    assert torch.allclose(twice.centers, tripled.centers, rtol=1e-6, atol=1e-9)


def test_center_update_discarded_leaves_no_trace() -> None:
    """The step is not counted either."""
    head, other = small_head(), small_head()
    head.loss(*batch(7)).backward()
    head.discard()
    assert train(head, 2) == train(other, 2)


def train_with_an_idle_rank(rank: int, folder: str) -> None:
    """Three classes, of which rank 1 has one: a tenth of it is no row, no label is its own, and it has no samples."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    head = small_head(num_classes=3, sample_rate=0.1)
    before, samples = head.centers.clone(), (4, 0)
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        embeddings = torch.randn(samples[rank], D, generator=generator).requires_grad_()
        head.loss(embeddings, torch.zeros(samples[rank], dtype=torch.int64), counts=samples).backward()
    head.step(0.5)
    assert (head.centers != before).any() == (rank == 0)
    dist.barrier()
    Path(folder, f"rank{rank}").touch()


def test_center_update_of_a_rank_without_rows_or_samples_changes_nothing(tmp_path: Path) -> None:
    run_ranks(train_with_an_idle_rank, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}  # both came to the end
