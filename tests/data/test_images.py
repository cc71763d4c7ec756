"""Normalising and augmenting batches of images against slow definitions."""

from types import SimpleNamespace

import torch

from rayface.data.images import augment, normalize, to_device

OFF = {"flip": False, "shift": 0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def test_normalize_maps_bytes_to_minus_one_to_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert normalize(images)[0, 0, 0].tolist() == [-1.0, 1.0]


def test_augment_with_shift_and_flip_equals_a_slow_loop():
    images = torch.randint(0, 256, (6, 9, 7, 3), dtype=torch.uint8)
    got = augment(images, slice(0, 6), 6, torch.Generator().manual_seed(5), **{**OFF, "flip": True, "shift": 2})
    draws = torch.rand(6, 6, generator=torch.Generator().manual_seed(5))
    for i in range(6):
        image = images[i].flip(1) if draws[0, i] < 0.5 else images[i]
        dx, dy = int(draws[1, i] * 5) - 2, int(draws[2, i] * 5) - 2
        want = torch.zeros_like(image)
        for y in range(9):
            for x in range(7):
                if 0 <= y + dy < 9 and 0 <= x + dx < 7:
                    want[y, x] = image[y + dy, x + dx]
        assert torch.equal(got[i], normalize(want[None])[0])


def test_augment_with_jitter_changes_only_what_it_names():
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    x = normalize(images)
    draws = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    for row, name, fixed in [(3, "brightness", ()), (4, "contrast", (1, 2, 3)), (5, "saturation", 1)]:
        got = augment(images, slice(0, 4), 4, torch.Generator().manual_seed(1), **{**OFF, name: 0.5})
        centre = x.mean(fixed, keepdim=True) if fixed else torch.tensor(-1.0)  # black
        factor = (0.5 + draws[row]).view(-1, 1, 1, 1)
        assert torch.allclose(got, centre + factor * (x - centre), atol=1e-5)


def test_augment_with_brightness_multiplies_the_bytes():
    images = torch.tensor([0, 20, 128, 230], dtype=torch.uint8).view(1, 2, 2, 1).expand(6, 2, 2, 3)
    got = augment(images, slice(0, 6), 6, torch.Generator().manual_seed(2), **{**OFF, "brightness": 0.4})
    factors = (got + 1) * 127.5 / images.permute(0, 3, 1, 2)
    drawn = 0.6 + 0.8 * torch.rand(6, 6, generator=torch.Generator().manual_seed(2))[3]
    for way in (factors[..., 0, 1], factors[..., 1, 0], factors[..., 1, 1]):
        torch.testing.assert_close(way, drawn[:, None].expand(6, 3), rtol=1e-5, atol=0)
    assert (got[..., 0, 0] == -1).all()


def test_augment_on_any_number_of_ranks_treats_an_image_alike():
    images = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8)
    options = {"flip": True, "shift": 2, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    whole = augment(images, slice(0, 6), 6, torch.Generator().manual_seed(9), **options)
    part = augment(images[4:6], slice(4, 6), 6, torch.Generator().manual_seed(9), **options)
    assert torch.equal(whole[4:6], part)


def test_to_device_copies_to_a_gpu_from_page_locked_memory_without_a_wait():
    calls = []
    pinned = SimpleNamespace(to=lambda *device, **options: calls.append((device, options)) or "there")
    contiguous = SimpleNamespace(pin_memory=lambda: pinned)
    tensor = SimpleNamespace(contiguous=lambda: contiguous)  # as a rank's columns of a matrix are not
    assert to_device(tensor, torch.device("cuda")) == "there"
    assert calls == [((torch.device("cuda"),), {"non_blocking": True})]
    assert to_device(torch.ones(2), torch.device("cpu")).tolist() == [1, 1]
