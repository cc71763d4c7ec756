"""What a head's step is measured against does the same work."""

import pytest
import torch

from rayface.bench.yardsticks import PlainHead, bare_products
from rayface.heads import CosFace, HeadSettings, PartialFC


@pytest.mark.parametrize("sample_rate", [1.0, 0.3])
def test_plain_head_without_sampling_moves_the_centers_as_partial_fc(sample_rate: float) -> None:
    settings = HeadSettings(embedding_size=8, num_classes=40, margin=CosFace(), sample_rate=sample_rate)
    plain, ours = PlainHead.build(settings), PartialFC.build(settings)
    start = ours.centers.clone()
    with torch.no_grad():
        plain.centers.copy_(start)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(40, (6,), generator=generator)
    leaves = [torch.randn(6, 8, generator=generator.manual_seed(1)).requires_grad_() for _ in range(2)]
    losses = [head.loss(leaf, labels) for head, leaf in zip((plain, ours), leaves, strict=True)]
    for head, loss in zip((plain, ours), losses, strict=True):
        loss.backward()
        head.step(0.1)
    if sample_rate == 1:
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        assert torch.allclose(leaves[0].grad, leaves[1].grad, rtol=1e-3, atol=1e-6)
        assert torch.allclose(plain.state()["centers"], ours.centers, atol=1e-6)
    else:
        assert losses[0].item() > 0
        assert not torch.equal(plain.state()["centers"], start)


def test_bare_products_run_at_the_sizes_of_a_step() -> None:
    run = bare_products(10, 4, 3, torch.float32, "cpu")
    assert run() is None
