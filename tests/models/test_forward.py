"""Images become embeddings: the normalised sum with the mirror image, whatever mode the net was in."""

import numpy as np
import pytest
import torch
from torch import nn

from rayface.models import forward
from rayface.models.forward import embed_images, embed_with_norms
from rayface.precision import full_float32


class Net(nn.Module):
    """Batch norm would give away training mode; the frozen part must stay frozen."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
        self.layers[1].eval()

    def forward(self, images):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return self.layers(images)


def test_embed_images_with_flip_is_the_normalised_sum_with_the_mirror_image():
    torch.manual_seed(0)
    net = Net()
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    got = embed_images(net, images, batch_size=3)
    assert net.training
    assert net.layers[0].training
    assert not net.layers[1].training
    layers = net.layers.double().eval()
    for image, embedding in zip(images, got, strict=True):
        x = torch.from_numpy(image.transpose(2, 0, 1).copy()).double()[None] / 127.5 - 1
        wanted = (layers(x) + layers(torch.flip(x, (3,))))[0].detach().numpy()
        np.testing.assert_allclose(embedding, wanted / np.linalg.norm(wanted), atol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.usefixtures("tf32_products")
def test_embed_images_on_a_cpu_leaves_tf32_as_a_program_has_set_it_and_on_a_gpu_forbids_it(monkeypatch):
    seen, net, images = [], Net(), np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)

    def note(*given):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))

    net.register_forward_hook(note)
    embed_images(net, images, flip=False)
    monkeypatch.setattr(forward, "full_float32", lambda device: full_float32(torch.device("cuda")))
    embed_images(net, images, flip=False)
    assert seen == [("tf32", "tf32"), ("ieee", "ieee")]


@pytest.mark.parametrize("flip", [True, False])
def test_embed_with_norms_returns_the_lengths_of_the_raw_embeddings(flip):
    torch.manual_seed(0)
    net = Net()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    got = embed_with_norms(net, images, batch_size=2, flip=flip)
    np.testing.assert_array_equal(got.embeddings, embed_images(net, images, batch_size=2, flip=flip))
    layers = net.layers.double().eval()
    for image, norm in zip(images, got.norms, strict=True):
        x = torch.from_numpy(image.transpose(2, 0, 1).copy()).double()[None] / 127.5 - 1
        raw = [layers(x), layers(torch.flip(x, (3,)))] if flip else [layers(x)]
        assert norm == pytest.approx(np.linalg.norm(sum(raw)[0].detach().numpy()) / len(raw), rel=1e-5)
    assert got.norms.dtype == np.float32


def test_embed_images_without_flip_or_in_bf16_differs_as_little_as_it_should():
    torch.manual_seed(0)
    net = Net()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    plain = embed_images(net, images, flip=False)
    assert not np.allclose(plain, embed_images(net, images))
    half = embed_images(net, images, flip=False, amp="bf16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() < 0.02
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)


def test_embed_images_by_a_net_that_fails_restores_its_mode():
    net = Net()
    with pytest.raises(RuntimeError):
        embed_images(net, np.zeros((1, 5, 5, 3), np.uint8))
    assert net.training
