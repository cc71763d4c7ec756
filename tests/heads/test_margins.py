"""Margins on whole matrices against the papers' definitions, at the edges, and drawn at random."""

import math

import pytest
import torch
from torch.nn import functional as F

from rayface.heads import MARGINS, AdaFace, CurricularFace, ElasticFace, MagFace, build_margin
from rayface.heads.margins import ArcFace, CombinedMargin, CosFace
from tests.heads import head_oracle

CASES = [case for case in head_oracle.cases() if case.dtype == torch.float64 and case.losses_per_step == 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_matrix_matches_the_oracle(case: head_oracle.Case) -> None:
    """`logits` gives the oracle's loss and embedding gradient."""
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


def test_defaults_are_the_papers() -> None:
    """The numbers users expect without giving any."""
    assert (CosFace().m3, CosFace().scale) == (0.4, 64)
    assert (ArcFace().m2, ArcFace().gradient) == (0.5, "straight_through")
    assert (AdaFace().margin, AdaFace().h, AdaFace().momentum) == (0.4, 0.333, 0.01)
    assert (ElasticFace().margin, ElasticFace().std) == (0.5, 0.0125)
    assert (ElasticFace("cos").margin, ElasticFace("cos").std) == (0.35, 0.05)
    assert (MagFace().low, MagFace().high, MagFace().margin_low, MagFace().margin_high) == (10, 110, 0.45, 0.8)
    assert CurricularFace().margin == 0.5


@pytest.mark.parametrize("name", MARGINS)
def test_edges_have_finite_gradients(name: str) -> None:
    """Cosines of exactly 1 and -1, a norm of 0, in fp32."""
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
def test_negatives_stay_in_the_range_given(name: str) -> None:
    """The softmax leaves out its max collective on the strength of `range`."""
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


def test_straight_through_has_the_exact_value_and_a_slope_of_one() -> None:
    """arcface_torch's ArcFace: loss of cos(theta + m), gradient as without a margin."""
    cosine = torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)
    a, b = (cosine.clone().requires_grad_() for _ in range(2))
    through, exact = ArcFace(0.5).target(a, a), ArcFace(0.5, gradient="exact").target(b, b)
    assert torch.allclose(through, exact, atol=1e-14, rtol=0)
    through.sum().backward()
    exact.sum().backward()
    assert torch.equal(a.grad, torch.ones_like(a))
    theta = torch.acos(cosine)
    assert torch.allclose(b.grad, torch.sin(theta + 0.5) / torch.sin(theta))


def test_elastic_margins_are_drawn_from_their_distribution() -> None:
    """Mean and deviation of the draws; the same generator, the same margins."""
    margin, cosine = ElasticFace("cos", margin=0.35, std=0.05), torch.zeros(20_000)
    drawn = -margin.target(cosine, cosine, torch.Generator().manual_seed(1))
    again = -margin.target(cosine, cosine, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert drawn.mean().item() == pytest.approx(0.35, abs=2e-3)
    assert drawn.std().item() == pytest.approx(0.05, rel=0.03)
    angles = torch.acos(ElasticFace("arc", std=0.1).target(cosine, cosine)) - math.pi / 2
    assert angles.mean().item() == pytest.approx(0.5, abs=4e-3)
    assert angles.std().item() == pytest.approx(0.1, rel=0.03)


def test_statistics_survive_a_checkpoint() -> None:
    """AdaFace and CurricularFace go on from the numbers they had."""
    for margin in (AdaFace(), CurricularFace()):
        margin.observe(torch.tensor([0.3, 0.5]), torch.tensor([5.0, 9.0]))
        fresh = type(margin)()
        assert fresh.state() != margin.state()
        fresh.load_state(margin.state())
        assert fresh.state() == margin.state()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CosFace(scale=0), "head.scale 0"),
        (lambda: CosFace(-0.1), "must not be negative"),
        (lambda: CombinedMargin(gradient="none"), "head.gradient 'none' must be one of"),
        (lambda: ArcFace(conflict_threshold=1.5), "head.conflict_threshold 1.5"),
        (lambda: MagFace(low=5, high=2), "head.low 5"),
        (lambda: ElasticFace("both"), "head.kind 'both'"),
        (lambda: build_margin("softmax"), "head.margin 'softmax' must be one of"),
    ],
)
def test_bad_settings_get_one_line(make, words: str) -> None:
    """Field, value and rule."""
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        make()
    assert "\n" not in str(caught.value)
