"""Losses without information, against closed forms."""

import math

import pytest
import torch

from rayface.heads.adaptive_margins import CurricularFace, ElasticFace, MagFace
from rayface.heads.margins import ArcFace, CosFace, Margin
from rayface.heads.partial_fc import PartialFC
from rayface.training.doctor.expected_loss import expected_loss

SIZE, CLASSES = 512, 10_000


@pytest.mark.parametrize(
    ("margin", "raised"),
    [(CosFace(0.4, scale=64.0), 64 * 0.4), (ArcFace(0.5, scale=64.0), 64 * math.sin(0.5)), (Margin(16.0), 0.0)],
)
def test_expected_loss_of_a_margin_is_ln_c_and_scale_times_margin(margin, raised):
    losses = expected_loss(margin, classes=CLASSES, embedding_size=SIZE, norm=20.0)
    assert losses.uninformed == pytest.approx(raised + math.log(CLASSES - 1), abs=1e-3)
    assert losses.initial == pytest.approx(losses.uninformed + margin.scale**2 / 2 / SIZE, rel=0.02)
    assert losses.drop == pytest.approx(raised / margin.scale, abs=1e-6)


@pytest.mark.parametrize("margin", [CosFace(0.4), ArcFace(0.5), CurricularFace(), MagFace(), ElasticFace()])
def test_expected_loss_is_that_of_a_new_head(margin):
    head = PartialFC(embedding_size=128, num_classes=500, margin=margin, seed=3)
    embeddings = 20 * torch.nn.functional.normalize(torch.randn(256, 128, generator=torch.Generator().manual_seed(1)))
    labels = torch.arange(256)
    with torch.no_grad():
        loss = float(head.loss(embeddings, labels))
    expected = expected_loss(margin, classes=500, embedding_size=128, norm=20.0).initial
    assert loss == pytest.approx(expected, rel=0.05)


def test_expected_loss_leaves_random_numbers_and_running_statistics_alone():
    margin = CurricularFace()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = expected_loss(margin, classes=100, embedding_size=64, norm=8.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert margin.t == 0.0
    assert first == expected_loss(margin, classes=100, embedding_size=64, norm=8.0)


def test_expected_loss_of_one_class_is_zero():
    losses = expected_loss(CosFace(0.4), classes=1, embedding_size=64, norm=8.0)
    assert (losses.initial, losses.uninformed) == (0.0, 0.0)
