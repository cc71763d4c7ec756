"""Forward pass of evaluation: images to embeddings of length 1 and their norms, with the mirror image added."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rayface.data.images import normalize
from rayface.models.embedded import Embedded
from rayface.precision import autocast, full_float32


def embed_images(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    flip: bool = True,
    amp: Literal["bf16"] | None = None,
    done: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return the embeddings of `embed_with_norms`."""
    return embed_with_norms(
        model, images, batch_size=batch_size, device=device, flip=flip, amp=amp, done=done
    ).embeddings


def embed_with_norms(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    flip: bool = True,
    amp: Literal["bf16"] | None = None,
    done: Callable[[], None] = lambda: None,
) -> Embedded:
    """Embed images as evaluation protocols do: the normalised sum of the embeddings of an image and its mirror image.

    Args:
        model: (n, 3, size, size) in [-1, 1] -> (n, D), on `device`; its training mode is restored afterwards.
        images: uint8 RGB (n, size, size, 3).
        batch_size: images per batch; the mirror images double it.
        device: device of the model.
        flip: add the mirror image.
        amp: "bf16" for autocast, None for float32 without TF32; sum and norm are always float32.
        done: called after every batch.

    Returns:
        Embeddings of length 1, NaN if the model returns NaN, see `refuse_non_finite`; and the lengths of the raw
        embeddings, with `flip` of the mean of the two.
    """
    device = torch.device(device)
    parts, norms = [], []
    with _evaluating(model), torch.inference_mode(), full_float32(device):
        for start in range(0, len(images), batch_size):
            batch = normalize(torch.from_numpy(images[start : start + batch_size]).to(device))
            with autocast(device, amp == "bf16"):
                total = model(batch).float()
                if flip:
                    total = total + model(batch.flip(3)).float()
            parts.append(F.normalize(total, dim=1).cpu().numpy())
            norms.append((torch.linalg.vector_norm(total, dim=1) / (1 + flip)).cpu().numpy())
            done()
    return Embedded(np.concatenate(parts), np.concatenate(norms))


def refuse_non_finite(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the embeddings (n, D) if they are finite.

    Raises:
        ValueError: the model returns NaN or infinity.
    """
    good = np.atleast_1d(np.isfinite(embeddings).all(axis=1))
    if not good.all():
        raise ValueError(
            f"model: returns NaN or infinity for {np.count_nonzero(~good)} of {len(good)} images, first for image "
            f"{int(np.argmin(good))}: its training diverged, or the precision is too low; use another checkpoint"
        )
    return embeddings


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation mode inside the context, and restore their mode on exit."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
