"""Vision transformers: their forward pass written out, token masking, stochastic depth."""

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.backbones.vit import VisionTransformer
from tests.backbones.narrow_nets import on_meta
from tests.backbones.transcription import State, assert_equals_transcription, bn, count, names_of

SMALL = {"width": 0.125, "image_size": 36, "embedding_size": 8}


def test_masking_of_tokens_keeps_a_share_of_each_image_in_place() -> None:
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


def test_masking_of_a_single_token_keeps_it() -> None:
    """Without it every embedding would be that of the mask token."""
    tokens = torch.ones(2, 1, 32)
    assert torch.equal(build_backbone("vit_t", mask_ratio=0.1, **SMALL)._keep_some(tokens)[0], tokens)


def test_masking_and_stochastic_depth_of_a_net_act_in_training_only() -> None:
    torch.manual_seed(0)
    net = build_backbone("vit_t", mask_ratio=0.5, drop_path=0.5, **SMALL)
    images = torch.randn(4, 3, 36, 36)
    with torch.no_grad():
        assert not torch.equal(net.train()(images), net(images))
        assert torch.equal(net.eval()(images), net(images))


def test_mask_token_without_masking_requires_no_gradient() -> None:
    net = build_backbone("vit_t", mask_ratio=0.0, **SMALL)
    assert not net.mask_token.requires_grad
    net(torch.randn(2, 3, 36, 36)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_stochastic_depth_of_many_images_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = build_backbone("vit_t", drop_path=0.25, **SMALL).blocks[-1].train()
    branch = torch.ones(4000, 1, 1)
    scaled = block._sometimes(branch).flatten()
    assert set(scaled.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert scaled.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("field", ["mask_ratio", "drop_path"])
def test_vit_with_a_rate_out_of_range_raises(field: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.{field} 1.0 must be in"):
        build_backbone("vit_t", **{field: 1.0}, **SMALL)


def layer_norm(w: State, key: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]


def vit(w: State, images: torch.Tensor) -> torch.Tensor:
    patches = images.unfold(2, 9, 9).unfold(3, 9, 9).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"] + w["pos_embed"]
    width = x.shape[2]
    for i in count(w, "blocks"):
        k = f"blocks.{i}"
        q, key, v = (layer_norm(w, f"{k}.norm1", x) @ w[f"{k}.attn.qkv.weight"].T).split(width, dim=2)
        heads = []
        for h in range(8):
            own = slice(h * width // 8, (h + 1) * width // 8)
            logits = q[..., own] @ key[..., own].transpose(1, 2) / (width / 8) ** 0.5
            heads.append(logits.softmax(-1) @ v[..., own])
        x = x + torch.cat(heads, 2) @ w[f"{k}.attn.proj.weight"].T + w[f"{k}.attn.proj.bias"]
        y = layer_norm(w, f"{k}.norm2", x) @ w[f"{k}.mlp.fc1.weight"].T + w[f"{k}.mlp.fc1.bias"]
        x = x + y.clamp(0, 6) @ w[f"{k}.mlp.fc2.weight"].T + w[f"{k}.mlp.fc2.bias"]
    x = layer_norm(w, "norm", x).flatten(1)
    x = bn(w, "feature.1", x @ w["feature.0.weight"].T, eps=2e-5)
    return bn(w, "feature.3", x @ w["feature.2.weight"].T, eps=2e-5)


def test_vit_h_of_the_registry_is_wider_and_deeper_than_vit_l() -> None:
    net = on_meta("vit_h")
    assert len(net.blocks) == 48
    assert net.pos_embed.shape == (1, 144, 1024)


@pytest.mark.parametrize("name", names_of(VisionTransformer))
def test_vit_forward_of_every_size_equals_its_transcription(name: str) -> None:
    assert_equals_transcription(name, 0.25 if name == "vit_t" else 0.0625, vit)
