"""Normalise and augment uint8 images on the device of training."""

import torch
import torch.nn.functional as F


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1], kept channels_last in memory."""
    return images.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to a device; the host does not wait for a GPU, which needs page-locked memory."""
    if device.type != "cuda":
        return tensor.to(device)
    # contiguous: of a rank's columns PyTorch would copy a contiguous copy, which is not page-locked
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def augment(
    images: torch.Tensor,
    rows: slice,
    batch_size: int,
    generator: torch.Generator,
    *,
    flip: bool,
    shift: int,
    brightness: float,
    contrast: float,
    saturation: float,
) -> torch.Tensor:
    """Random mirror, crop shift and colour jitter, drawn for every image of the *global* batch.

    Each rank draws for all B images and uses its own part, so an image gets the same augmentation on any number of
    ranks.

    Args:
        images: uint8 (n, h, w, 3), the rank's part, on the device of training.
        rows: the rank's part of the global batch.
        batch_size: global batch B.
        generator: CPU generator, seeded by the caller for the step.
        flip: mirror half of the images.
        shift: maximum crop shift in pixels; the edge is black.
        brightness, contrast, saturation: maximum relative change, 0.2 for +-20 %, of the distance of a value from
            black, from the image's mean, and from the mean of the pixel's channels.

    Returns:
        float32 (n, 3, h, w), normalised to [-1, 1] before the jitter and not clipped after it.
    """
    draws = torch.rand(6, batch_size, generator=generator)[:, rows]
    # nonzero on the CPU: on a GPU the host waits for its size
    mirrored = to_device((draws[0] < 0.5).nonzero()[:, 0], images.device)
    draws = to_device(draws, images.device)
    if flip:
        images = images.index_copy(0, mirrored, images.index_select(0, mirrored).flip(2))
    if shift:
        images = _shift(images, draws[1], draws[2], shift)
    x = normalize(images)
    if brightness:
        factor = (1 + brightness * (2 * draws[3] - 1)).view(-1, 1, 1, 1)
        x = torch.addcmul(factor - 1, x, factor)  # (x + 1) * factor - 1: black, which is -1, stays black
    if contrast:
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (1 + contrast * (2 * draws[4] - 1)).view(-1, 1, 1, 1)
    if saturation:
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * (1 + saturation * (2 * draws[5] - 1)).view(-1, 1, 1, 1)
    return x


def _shift(images: torch.Tensor, draw_x: torch.Tensor, draw_y: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift every image by its own integer number of pixels in [-shift, shift]."""
    n, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, shift, shift, shift, shift))
    span = 2 * shift + 1
    dx = (draw_x * span).long().clamp_(max=2 * shift)
    dy = (draw_y * span).long().clamp_(max=2 * shift)
    # Windows are copied whole: an index for every pixel takes five times as long on a CPU.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(n, device=images.device), dy, dx]
