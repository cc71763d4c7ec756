"""The exponents' base that saves the max collective, and the memory of the logits."""

import math

import pytest
import torch
from torch import Tensor

from rayface.heads import CosFace, PartialFC
from rayface.heads.sharded_softmax import exponent_base
from tests.heads.small_head import B, C, batch, small_head, train


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("off", [1 + 1e-5, (1 + 2**-9) ** 3])  # a logit of rounded fp32, or of bf16 products
@pytest.mark.parametrize("classes", [1, 1000, 100_000_000])
@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0, 70.0, 77.0, 300.0])
def test_exponent_base_at_the_worst_cosines_keeps_sums_finite(
    scale: float, classes: int, off: float, dtype: torch.dtype
) -> None:
    """At the worst cosines, sum of all classes and smallest single term are finite and normal numbers."""
    base = exponent_base(CosFace(scale=scale), classes, dtype)
    if base is None:
        assert scale == 300.0
        assert dtype == torch.float32
        return
    info = torch.finfo(dtype)
    assert 2 * scale * off - base - scale + math.log(classes) < math.log(info.max)
    largest = torch.exp(torch.tensor(scale * off - base, dtype=dtype)) * classes
    smallest = torch.exp(torch.tensor(-scale * off - base, dtype=dtype))
    assert torch.isfinite(largest)
    assert smallest >= info.tiny


def test_exponent_base_at_the_usual_scale_is_zero() -> None:
    """s = 64 with ten million classes in fp32; None where no constant is safe."""
    assert exponent_base(CosFace(scale=64.0), 10_000_000, torch.float32) == 0.0
    assert exponent_base(CosFace(scale=128.0), 10_000_000, torch.float32) is None


@pytest.mark.parametrize("scale", [20.0, 64.0, 75.0])
@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])
def test_loss_at_the_worst_cosines_needs_no_maximum(scale: float, product_dtype: torch.dtype) -> None:
    """All other classes at cos = 1, and all at cos = -1: the loss and gradients that a maximum would have given."""
    name = "bf16" if product_dtype == torch.bfloat16 else "fp32"
    assert exponent_base(CosFace(scale=scale), 50, torch.float32) is not None
    for sign in (1.0, -1.0):
        head = PartialFC(8, 50, CosFace(0.0, scale=scale), compute_dtype=name)
        centers = torch.zeros(50, 8)
        centers[:, 0] = sign
        centers[0] = torch.tensor([-sign] + [0.0] * 7)  # the target, at the other end
        head.load_centers(centers)
        x = torch.zeros(4, 8)
        x[:, 0] = 3.0
        x.requires_grad_()
        value = head.loss(x, torch.zeros(4, dtype=torch.int64))
        value.backward()
        head.step(0.1)
        logits = scale * torch.tensor([-sign] + [sign] * 49, dtype=torch.float64)
        wanted = -torch.log_softmax(logits, 0)[0].item()
        assert value.item() == pytest.approx(wanted, rel=1e-5, abs=1e-6 if name == "fp32" else 2**-8)
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(head.centers).all()


def test_softmax_over_all_rows_reads_the_matrix_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample rate 1 gathers no more rows than there are targets."""
    head, sizes, gather = small_head(sample_rate=1.0), [], torch.index_select

    def watched(source: Tensor, dim: int, index: Tensor, **keywords) -> Tensor:
        sizes.append(len(index))
        return gather(source, dim, index, **keywords)

    monkeypatch.setattr(torch, "index_select", watched)
    train(head, 2)
    assert max(sizes) <= B


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_logits_larger_than_logit_memory_stay_within_it(rate: float) -> None:
    """No buffer of exponentials or logits exceeds logit_memory."""
    head = small_head(sample_rate=rate, logit_memory=8000)
    head.loss(*batch()).backward()
    kept = head._update.pending[0].kept
    head.step(0.1)
    space = head.softmax.workspace._buffers
    logits = sum(b.numel() * b.element_size() for (name, _), b in space.items() if name == "logits")
    assert logits + kept.numel() * kept.element_size() <= 8000
    assert head.softmax.chunk_rows(B) < C * rate
