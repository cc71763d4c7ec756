"""Token masking and stochastic depth of the vision transformers."""

import pytest
import torch

from rayface.backbones import build_backbone

SMALL = {"width": 0.125, "image_size": 36, "embedding_size": 8}


def test_masking_keeps_a_share_of_each_images_tokens_in_place() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_t", mask_ratio=0.25, **SMALL)
    tokens = torch.arange(1.0, 17).repeat(3, 1)[:, :, None].expand(3, 16, 32)
    kept, order = net._keep_some(tokens)
    assert kept.shape == (3, 12, 32)
    torch.nn.init.zeros_(net.mask_token)
    filled = net._fill_gaps(kept, order)
    assert (filled == 0).all(dim=2).sum(dim=1).tolist() == [4, 4, 4]
    assert torch.equal(filled, torch.where(filled == 0, filled, tokens))
    assert len({tuple(row[:, 0].tolist()) for row in filled}) == 3  # every image its own


def test_masking_and_stochastic_depth_act_in_training_only() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_t", mask_ratio=0.5, drop_path=0.5, **SMALL)
    images = torch.randn(4, 3, 36, 36)
    with torch.no_grad():
        assert not torch.equal(net.train()(images), net(images))
        assert torch.equal(net.eval()(images), net(images))


def test_without_masking_its_token_asks_for_no_gradient() -> None:
    net = build_backbone("vit_t", mask_ratio=0.0, **SMALL)
    assert not net.mask_token.requires_grad
    net(torch.randn(2, 3, 36, 36)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_skipped_branch_is_made_up_for_by_the_others() -> None:
    torch.manual_seed(0)
    block = build_backbone("vit_t", drop_path=0.25, **SMALL).blocks[-1].train()
    branch = torch.ones(4000, 1, 1)
    scaled = block._sometimes(branch).flatten()
    assert set(scaled.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert scaled.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("field", ["mask_ratio", "drop_path"])
def test_rates_out_of_range_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.{field} 1.0 must be in"):
        build_backbone("vit_t", **{field: 1.0}, **SMALL)
