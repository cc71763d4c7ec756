"""iresnet: sizes, widths, first weights."""

import pytest
import torch

from rayface.backbones import build_backbone


@pytest.mark.parametrize("image_size", [16, 48, 56, 112])
def test_embeds_square_images_of_any_size(image_size: int) -> None:
    net = build_backbone("mini", image_size=image_size, embedding_size=32).eval()
    assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 32)


def test_mini_is_r18_at_a_quarter_of_its_width() -> None:
    mini = build_backbone("mini", image_size=56, embedding_size=256)
    narrow = build_backbone("r18", image_size=56, embedding_size=256, width=0.25)
    assert {k: v.shape for k, v in mini.state_dict().items()} == {k: v.shape for k, v in narrow.state_dict().items()}
    assert mini.conv1.out_channels == 16


def test_convolutions_start_at_a_tenth_and_the_last_scale_is_frozen() -> None:
    net = build_backbone("r18", width=0.5, image_size=32)
    assert net.layer4[1].conv1.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert net.features.weight.requires_grad is False
    assert torch.equal(net.features.weight, torch.ones(512))
