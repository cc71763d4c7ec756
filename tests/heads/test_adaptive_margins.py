"""AdaFace, ElasticFace, MagFace and CurricularFace: drawn margins, running statistics, values out of range."""

import math

import pytest
import torch

from rayface.heads import AdaFace, CurricularFace, ElasticFace, MagFace


def test_elasticface_with_a_generator_draws_margins_of_its_distribution() -> None:
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


def test_running_statistics_saved_and_loaded_are_equal() -> None:
    for margin in (AdaFace(), CurricularFace()):
        margin.observe(torch.tensor([0.3, 0.5]), torch.tensor([5.0, 9.0]))
        fresh = type(margin)()
        assert fresh.state() != margin.state()
        fresh.load_state(margin.state())
        assert fresh.state() == margin.state()


def test_adaptive_margins_without_arguments_have_the_values_of_the_papers() -> None:
    assert (AdaFace().margin, AdaFace().h, AdaFace().momentum) == (0.4, 0.333, 0.01)
    assert (ElasticFace().margin, ElasticFace().std) == (0.5, 0.0125)
    assert (ElasticFace("cos").margin, ElasticFace("cos").std) == (0.35, 0.05)
    assert (MagFace().low, MagFace().high, MagFace().margin_low, MagFace().margin_high) == (10, 110, 0.45, 0.8)
    assert CurricularFace().margin == 0.5


def test_adaface_after_a_batch_moves_its_statistics_by_the_momentum() -> None:
    """Norms are clipped to [.001, 100]; a batch of one has no deviation."""
    margin = AdaFace(momentum=0.5)
    margin.observe(torch.zeros(2), torch.tensor([10.0, 1000.0]))
    assert margin.norm_mean == pytest.approx(0.5 * 20 + 0.5 * 55)
    assert margin.norm_std == pytest.approx(0.5 * 100 + 0.5 * 45 * math.sqrt(2))
    margin.observe(torch.zeros(1), torch.tensor([7.0]))
    assert margin.norm_std == pytest.approx(0.5 * (50 + 22.5 * math.sqrt(2)))


def test_adaface_of_norms_far_from_the_mean_gives_the_largest_and_the_smallest_margin() -> None:
    """Quality 1: an angle of -m and 2 m off the cosine; quality -1: an angle of m and nothing off."""
    margin, cosine = AdaFace(margin=0.4), torch.tensor([0.2, 0.2], dtype=torch.float64)
    margin.norm_mean, margin.norm_std = 50.0, 1.0
    high, low = margin.target(cosine, torch.tensor([90.0, 5.0], dtype=torch.float64)).tolist()
    assert high == pytest.approx(math.cos(math.acos(0.2) - 0.4) - 0.8)
    assert low == pytest.approx(math.cos(math.acos(0.2) + 0.4))


def test_adaface_of_an_angle_beyond_its_range_is_clipped_and_has_no_gradient() -> None:
    """To [1e-3, pi - 1e-3]: 0.04 - 0.4 of a good image, and 3.1 + 0.4 of a bad one."""
    margin = AdaFace(margin=0.4)
    margin.norm_mean, margin.norm_std = 50.0, 1.0
    cosine = torch.tensor([0.999, -0.999], dtype=torch.float64).requires_grad_()
    target = margin.target(cosine, torch.tensor([90.0, 5.0], dtype=torch.float64))
    assert target.tolist() == pytest.approx([math.cos(1e-3) - 0.8, -math.cos(1e-3)], abs=1e-12)
    target.sum().backward()
    assert cosine.grad.tolist() == [0, 0]


def test_target_of_an_angle_that_exceeds_pi_with_the_margin_falls_with_the_cosine() -> None:
    """cos(theta) - m sin(m): MagFace with m = 0.8 for a norm of 110, CurricularFace with 0.5."""
    cosine = torch.tensor([-0.99, -0.6], dtype=torch.float64)
    theta = math.acos(-0.6)
    norms = torch.full((2,), 110.0, dtype=torch.float64)
    for margin, m in ((MagFace(), 0.8), (CurricularFace(), 0.5)):
        wanted = [-0.99 - m * math.sin(m), math.cos(theta + m)]
        assert margin.target(cosine, norms).tolist() == pytest.approx(wanted, abs=1e-12)


def test_magface_of_growing_norms_has_a_growing_margin_and_a_falling_penalty() -> None:
    margin = MagFace()
    norms = torch.tensor([1.0, 10.0, 60.0, 110.0, 500.0], dtype=torch.float64)
    angles = torch.acos(margin.target(torch.zeros(5, dtype=torch.float64), norms)) - math.pi / 2
    assert angles.tolist() == pytest.approx([0.45, 0.45, 0.625, 0.8, 0.8])
    penalty = margin.penalty(norms)
    assert penalty[0] == penalty[1]
    assert penalty[1] > penalty[2] > penalty[3]
    assert penalty[3] == penalty[4]


def test_curricularface_of_easy_and_hard_negatives_weighs_the_hard_ones() -> None:
    """Hard: above cos(theta + m); new logit s c (t + c), slope t + 2 c."""
    margin = CurricularFace(margin=0.5, scale=10.0, momentum=1.0)
    margin.observe(torch.tensor([0.6]), torch.ones(1))
    stats = margin.sample_stats(torch.tensor([0.6], dtype=torch.float64))
    logits = torch.tensor([[9.0], [-2.0]], dtype=torch.float64)
    slope = margin.modulate_negatives_(logits, stats)
    assert slope is not None
    assert logits.flatten().tolist() == pytest.approx([10 * 0.9 * (0.6 + 0.9), -2.0])
    assert slope.flatten().tolist() == pytest.approx([0.6 + 2 * 0.9, 1.0])
    assert margin.range() == (-1.0, pytest.approx(1.6))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MagFace(low=5, high=2), "^low: 5: must be above 0 and below high, 2"),
        (lambda: ElasticFace("both"), "^kind: 'both': must be arc or cos"),
        (lambda: ElasticFace(std=-0.1), "^std: -0.1: must be a number at least 0"),
        (lambda: AdaFace(margin=-5), "^margin: -5: must be a number at least 0"),
        (lambda: AdaFace(h="abc"), "^h: 'abc': must"),
        (lambda: MagFace(weight="abc"), "^weight: 'abc': must"),
        (lambda: MagFace(margin_low=math.nan), "^margin_low: nan: must"),
        (lambda: CurricularFace(momentum=5), r"^momentum: 5: must be a number in \[0, 1\]"),
    ],
)
def test_adaptive_margin_with_a_value_out_of_range_raises_one_line(build, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value)
