"""Margins on whole matrices against the papers' definitions, and at the edges."""

import pytest
import torch
from torch.nn import functional as F

from rayface.heads import MARGINS, build_margin
from rayface.heads.margins import ArcFace, CombinedMargin, CosFace
from tests.heads import head_oracle

CASES = [case for case in head_oracle.cases() if case.dtype == torch.float64 and case.losses_per_step == 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_of_a_whole_matrix_equal_the_oracle(case: head_oracle.Case) -> None:
    """Loss and embedding gradient."""
    margin, centers, stats = build_margin(case.margin, **case.margin_args), case.centers(), {}
    for x, y in case.batches(centers):
        if case.special == "zeros":
            x = x + 1e-3
        ours, wanted = (x.clone().requires_grad_() for _ in range(2))
        cosine = F.normalize(ours) @ F.normalize(centers).T
        norms = ours.norm(dim=1)
        value = F.cross_entropy(margin.logits(cosine, y, norms), y)
        penalty = margin.penalty(norms)
        value = value if penalty is None else value + penalty.mean()
        value.backward()
        everything = torch.ones(case.num_classes, dtype=torch.bool)
        oracle = head_oracle.loss(case, wanted, y, centers, everything, stats)
        oracle.backward()
        assert value.item() == pytest.approx(oracle.item(), rel=case.bound)
        assert torch.allclose(ours.grad, wanted.grad, rtol=0, atol=case.bound * wanted.grad.abs().max().clamp_min(1e-3))


def test_margins_without_arguments_have_the_values_of_the_papers() -> None:
    assert (CosFace().m3, CosFace().scale) == (0.4, 64)
    assert (ArcFace().m2, ArcFace().gradient) == (0.5, "straight_through")


@pytest.mark.parametrize("name", MARGINS)
def test_target_at_extreme_cosines_and_norms_has_finite_gradients(name: str) -> None:
    """Cosines of exactly 1 and -1 and a norm of 0, in fp32."""
    margin = build_margin(name) if name != "arcface" else ArcFace(gradient="exact")
    cosine = torch.tensor([1.0, -1.0, 0.0, 1.0]).requires_grad_()
    norms = torch.tensor([1.0, 0.0, 20.0, 500.0]).requires_grad_()
    margin.observe(cosine.detach(), norms.detach())
    total = margin.target(cosine, norms).sum()
    penalty = margin.penalty(norms)
    (total if penalty is None else total + penalty.sum()).backward()
    assert torch.isfinite(total)
    assert torch.isfinite(cosine.grad).all()
    assert norms.grad is None or torch.isfinite(norms.grad).all()


@pytest.mark.parametrize("name", MARGINS)
def test_modulated_negatives_at_any_target_cosine_stay_within_range(name: str) -> None:
    """The softmax leaves out its max collective because of `range`."""
    margin = build_margin(name)
    cosine = torch.linspace(-1, 1, 201, dtype=torch.float64)
    for target in (-1.0, -0.3, 0.0, 0.5, 1.0):
        for _ in range(200):
            margin.observe(torch.full((4,), target), torch.full((4,), 20.0))
        logits = (cosine * margin.scale)[:, None]
        margin.modulate_negatives_(logits, margin.sample_stats(torch.tensor([target], dtype=torch.float64)))
        low, high = margin.range()
        assert logits.min() >= margin.scale * low - 1e-9
        assert logits.max() <= margin.scale * high + 1e-9


def test_arcface_straight_through_has_the_exact_value_and_a_slope_of_one() -> None:
    """As arcface_torch's ArcFace: loss of cos(theta + m), gradient as without a margin."""
    cosine = torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)
    a, b = (cosine.clone().requires_grad_() for _ in range(2))
    through, exact = ArcFace(0.5).target(a, a), ArcFace(0.5, gradient="exact").target(b, b)
    assert torch.allclose(through, exact, atol=1e-14, rtol=0)
    through.sum().backward()
    exact.sum().backward()
    assert torch.equal(a.grad, torch.ones_like(a))
    theta = torch.acos(cosine)
    assert torch.allclose(b.grad, torch.sin(theta + 0.5) / torch.sin(theta))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CosFace(scale=0), "^scale: 0: must be a number > 0"),
        (lambda: CosFace(-0.1), "^margin: -0.1: must be a number at least 0"),
        (lambda: CombinedMargin(m2="abc"), "^m2: 'abc': must be a number at least 0"),
        (lambda: CombinedMargin(gradient="none"), "^gradient: 'none': must be one of"),
        (lambda: ArcFace(conflict_threshold=1.5), "^conflict_threshold: 1.5: must"),
    ],
)
def test_margin_with_a_value_out_of_range_raises_one_line(make, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        make()
    assert "\n" not in str(caught.value)
