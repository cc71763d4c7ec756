"""Random loss of quality of training images: low resolution, blur, JPEG, grey, crops and erased rectangles."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from functools import lru_cache

import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from rayface.data.images import to_device

_SMALLEST = 0.2  # least side of a low resolution, as a share; as AdaFace has it
_SIGMA = 0.3, 2.0  # standard deviation of a blur, pixels
_QUALITY = 20, 90  # of a JPEG
_CROP_AREA, _CROP_RATIO = (0.2, 1.0), 4 / 3  # as AdaFace has it
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), 3.3  # Zhong et al., arXiv 1708.04896
_ERASED = 127  # mid-grey, 0 when normalised
_NUM_DRAWS = 17


@dataclass(frozen=True, kw_only=True)
class Degradations:
    """Share of the images, from 0 to 1, to which each is applied, in the order of the fields.

    Attributes:
        jpeg: encode as JPEG of a quality from 20 to 90.
        crop: keep a random crop of 20 to 100 % of the area, and make the rest black.
        low_resolution: scale down to 20 to 100 % of the side, and up again.
        blur: Gaussian blur of 0.3 to 2 pixels.
        grey: drop the colours.
        erase: erase a random rectangle of 2 to 33 % of the area.
    """

    jpeg: float = 0.0
    crop: float = 0.0
    low_resolution: float = 0.0
    blur: float = 0.0
    grey: float = 0.0
    erase: float = 0.0


def degrade(
    images: Tensor,
    rows: slice,
    batch_size: int,
    generator: torch.Generator,
    shares: Degradations,
    device: torch.device | None = None,
) -> Tensor:
    """Apply random degradations, drawn for every image of the *global* batch, see `augment`.

    Args:
        images: uint8 (n, h, w, 3) on the CPU, the rank's part.
        rows: the rank's part of the global batch.
        batch_size: global batch B.
        generator: CPU generator, seeded by the caller for the step.
        device: where all but JPEG is computed; None: the CPU.

    Returns:
        uint8 (n, h, w, 3) on the device; `images` are unchanged.
    """
    device = device or images.device
    if not any(astuple(shares)):
        return to_device(images, device)
    draws = torch.rand(_NUM_DRAWS, batch_size, generator=generator, dtype=torch.float64)[:, rows]
    gates, rest = draws[:6], draws[6:]
    chosen = [(gate < share).nonzero()[:, 0] for gate, share in zip(gates, astuple(shares), strict=True)]
    jpeg, crop, low, blur, grey, erase = chosen
    images = images.clone()
    for i in jpeg.tolist():
        images[i] = _jpeg(images[i], rest[0, i].item())
    images = to_device(images, device)
    for i in crop.tolist():
        top, left, height, width = _box(images.shape[1:3], rest[1:5, i].tolist(), _CROP_AREA, _CROP_RATIO)
        kept = images[i, top : top + height, left : left + width].clone()
        images[i] = 0
        images[i, top : top + height, left : left + width] = kept
    _apply(images, low, [_low_resolution(side, rest[5, low]) for side in images.shape[1:3]])
    _apply(images, blur, [_blur(side, rest[6, blur]) for side in images.shape[1:3]])
    if len(grey):
        on_device = to_device(grey, images.device)
        images[on_device] = _grey(images[on_device])
    for i in erase.tolist():
        top, left, height, width = _box(images.shape[1:3], rest[7:11, i].tolist(), _ERASED_AREA, _ERASED_RATIO)
        images[i, top : top + height, left : left + width] = _ERASED
    return images


def _jpeg(image: Tensor, draw: float) -> Tensor:
    quality = _QUALITY[0] + int(draw * (_QUALITY[1] - _QUALITY[0] + 1))
    data = simplejpeg.encode_jpeg(image.contiguous().numpy(), quality, "RGB", "420")
    return torch.from_numpy(simplejpeg.decode_jpeg(data))


def _box(
    size: torch.Size, draws: list[float], area: tuple[float, float], largest_ratio: float
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random box; area uniform, ratio of the sides log-uniform."""
    height, width = size
    share = area[0] + draws[0] * (area[1] - area[0])
    stretch = math.exp((2 * draws[1] - 1) * math.log(largest_ratio) / 2)
    tall = min(height, max(1, round(height * math.sqrt(share) * stretch)))
    wide = min(width, max(1, round(width * math.sqrt(share) / stretch)))
    return int(draws[2] * (height - tall + 1)), int(draws[3] * (width - wide + 1)), tall, wide


def _apply(images: Tensor, chosen: Tensor, matrices: list[Tensor]) -> None:
    """Replace images by rows @ image @ columns^T of each channel; matrices (m, h, h) and (m, w, w)."""
    if not len(chosen):
        return
    rows, columns = (to_device(matrix, images.device) for matrix in matrices)
    where = to_device(chosen, images.device)
    pixels = images[where].permute(0, 3, 1, 2).float()
    found = rows[:, None] @ pixels @ columns[:, None].transpose(2, 3)
    images[where] = found.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _low_resolution(side: int, draws: Tensor) -> Tensor:
    """Return the matrices (m, side, side) that scale a side down, with antialiasing, and up again, bilinearly."""
    smaller = [max(1, round(side * (_SMALLEST + draw * (1 - _SMALLEST)))) for draw in draws.tolist()]
    return torch.stack([_down_and_up(side, each) for each in smaller]) if smaller else torch.empty(0)


@lru_cache(maxsize=512)
def _down_and_up(side: int, smaller: int) -> Tensor:
    columns = torch.eye(side, dtype=torch.float64)[None, None]  # each row of the result is the image of a unit vector
    down = F.interpolate(columns, (side, smaller), mode="bilinear", antialias=True)
    return F.interpolate(down, (side, side), mode="bilinear")[0, 0].T.float()


def _blur(side: int, draws: Tensor) -> Tensor:
    """Return the matrices (m, side, side) of Gaussian blurs; at the edge, weights inside the image are normalised."""
    sigma = _SIGMA[0] + draws * (_SIGMA[1] - _SIGMA[0])
    at = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma[:, None, None] ** 2))
    return (weights / weights.sum(2, keepdim=True)).float()


def _grey(images: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601 in all three channels."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    luma = (images.float() * weights).sum(3, keepdim=True).round_().to(torch.uint8)
    return luma.expand_as(images)
