"""Degradations against slow definitions; how often and how strongly they are drawn; the same on any number of ranks."""

import math

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F

from rayface.data.degradations import Degradations, degrade

NAMES = ("jpeg", "crop", "low_resolution", "blur", "grey", "erase")


def pictures(count: int, height: int = 24, width: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(count)) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def degraded(images: torch.Tensor, seed: int = 0, rows: slice | None = None, **shares: float) -> torch.Tensor:
    count = len(images) if rows is None else 12
    generator = torch.Generator().manual_seed(seed)
    return degrade(images, rows or slice(0, count), count, generator, Degradations(**shares))


def draws(count: int, seed: int = 0) -> torch.Tensor:
    """Return the parameters of each image: quality, box of the crop, size, sigma, erased box."""
    return torch.rand(17, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[6:]


def box(u: list[float], height: int, width: int, area: tuple[float, float], ratio: float) -> tuple[slice, slice]:
    side = math.sqrt(area[0] + u[0] * (area[1] - area[0]))
    stretch = ratio ** (u[1] - 0.5)
    tall, wide = (min(n, round(n * side * s)) for n, s in ((height, stretch), (width, 1 / stretch)))
    top, left = int(u[2] * (height - tall + 1)), int(u[3] * (width - wide + 1))
    return slice(top, top + tall), slice(left, left + wide)


def test_degrade_without_shares_returns_the_images_and_draws_nothing() -> None:
    images, generator = pictures(3), torch.Generator().manual_seed(1)
    state = generator.get_state()
    assert degrade(images, slice(0, 3), 3, generator, Degradations()) is images
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_degrade_changes_its_share_of_the_images_and_not_its_input(name: str) -> None:
    images = pictures(2000, 8, 8)
    before = images.clone()
    generator = torch.Generator().manual_seed(3)
    found = degrade(images, slice(0, 2000), 2000, generator, Degradations(**{name: 0.25}))
    assert torch.equal(images, before)
    changed = (found != images).flatten(1).any(1)
    unchanged_share = {"crop": 0.1, "low_resolution": 0.12}.get(name, 0.02)  # a crop of all of it, a scale of 1
    assert 0.25 * (1 - unchanged_share) - 0.04 < changed.double().mean().item() < 0.29


def test_jpeg_equals_the_codec_at_the_drawn_quality() -> None:
    images = pictures(8)
    qualities = (20 + (draws(8)[0] * 71).long()).tolist()
    for image, found, quality in zip(images, degraded(images, jpeg=1.0), qualities, strict=True):
        want = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image.numpy(), quality, "RGB", "420"))
        assert np.array_equal(found.numpy(), want)
        assert 20 <= quality <= 90


def test_crop_keeps_the_box_in_its_place_and_makes_the_rest_black() -> None:
    images = pictures(20)
    for image, found, u in zip(images, degraded(images, crop=1.0), draws(20)[1:5].T.tolist(), strict=True):
        rows, columns = box(u, 24, 32, (0.2, 1.0), 4 / 3)
        want = torch.zeros_like(image)
        want[rows, columns] = image[rows, columns]
        assert torch.equal(found, want)


def test_erase_fills_the_box_with_grey() -> None:
    images = pictures(20)
    for image, found, u in zip(images, degraded(images, erase=1.0), draws(20)[7:11].T.tolist(), strict=True):
        want = image.clone()
        want[box(u, 24, 32, (0.02, 0.33), 3.3)] = 127
        assert torch.equal(found, want)


def test_low_resolution_equals_scaling_down_and_up() -> None:
    images = pictures(12)
    for image, found, u in zip(images, degraded(images, low_resolution=1.0), draws(12)[5].tolist(), strict=True):
        size = [max(1, round(side * (0.2 + 0.8 * u))) for side in (24, 32)]
        pixels = image.permute(2, 0, 1)[None].double()
        small = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        want = F.interpolate(small, (24, 32), mode="bilinear")[0].permute(1, 2, 0)
        assert (found - want).abs().max() <= 0.51


def test_blur_equals_a_slow_weighted_mean() -> None:
    images = pictures(3, 9, 7)
    for image, found, u in zip(images, degraded(images, blur=1.0), draws(3)[6].tolist(), strict=True):
        sigma = 0.3 + 1.7 * u
        want = torch.zeros(9, 7, 3, dtype=torch.float64)
        for y in range(9):
            for x in range(7):
                total = 0.0
                for v in range(9):
                    for w in range(7):
                        weight = math.exp(-((y - v) ** 2 + (x - w) ** 2) / (2 * sigma**2))
                        want[y, x] += weight * image[v, w]
                        total += weight
                want[y, x] /= total
        assert (found - want).abs().max() <= 0.51


def test_grey_has_the_luma_in_all_channels() -> None:
    images = pictures(4)
    found = degraded(images, grey=1.0)
    want = (images.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).unsqueeze(3)
    assert (found - want).abs().max() <= 0.51
    assert (found[..., :1] == found).all()


def test_degradations_are_drawn_independently_of_each_other() -> None:
    images = torch.full((4000, 1, 2, 3), 200, dtype=torch.uint8)
    images[:, :, :, 1] = 100
    found = degraded(images, grey=0.5, erase=0.5)
    erased, grey = (
        (found == 127).all(3).any((1, 2)),
        (found[..., :1] == found).all(3).all((1, 2)) & (found != 127).any(3).any((1, 2)),
    )
    assert abs(erased.double().mean().item() - 0.5) < 0.04
    assert abs(grey[~erased].double().mean().item() - 0.5) < 0.05


def test_degrade_on_any_number_of_ranks_treats_an_image_alike() -> None:
    images, shares = pictures(12), dict.fromkeys(NAMES, 0.6)
    whole = degraded(images, seed=5, **shares)
    for world_size in (2, 3, 12):
        step = 12 // world_size
        parts = [degraded(images[k : k + step], 5, slice(k, k + step), **shares) for k in range(0, 12, step)]
        assert torch.equal(torch.cat(parts), whole)
