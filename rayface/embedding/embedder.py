"""A model as a function: uint8 images to embeddings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.models.embedded import Embedded
from rayface.models.forward import embed_with_norms, refuse_non_finite
from rayface.models.model_files import load_model
from rayface.models.onnx_model import OnnxModule

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A model ready to embed: uint8 RGB (N, size, size, 3) -> float32 (N, D) of length 1.

    Attributes:
        function: images to embeddings and norms.
        image_size: side of the images that it takes, pixels.
        embedding_size: D.
        digest: sha256 of its file.
        weights: sha256 of the weights that its ONNX file was exported from; None: of a file that holds its weights.
    """

    function: Callable[[NDArray[np.uint8]], Embedded]
    image_size: int
    embedding_size: int
    digest: str
    weights: str | None = None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.function(images).embeddings

    def with_norms(self, images: NDArray[np.uint8]) -> Embedded:
        """Return embeddings and norms of the images."""
        return self.function(images)


def default_batch(device: str) -> int:
    """Return the images of a batch: 64 on a CPU, 256 on a GPU."""
    # glibc takes memory of more than 32 MiB from the kernel anew each time, page by page: with 256 images of `mini`,
    # two fifths of the CPU time.
    return 64 if torch.device(device).type == "cpu" else 256


def load_embedder(
    model: str | Path,
    *,
    backbone: str | None = None,
    device: str = "cpu",
    flip: bool = True,
    precision: Precision = "fp32",
    batch_size: int | None = None,
) -> Embedder:
    """Load a model to embed with.

    Args:
        model, backbone: see `load_model`.
        device: device of the model.
        flip: add the embedding of the mirror image, as verification protocols do.
        precision: precision of the model; sum and norm are always float32.
        batch_size: images per batch; the mirror images double it. None: see `default_batch`.

    Raises:
        ValueError: see `load_model`.
    """
    size = batch_size or default_batch(device)
    loaded = load_model(model, backbone=backbone, device=device)
    if precision == "bf16" and isinstance(loaded.module, OnnxModule):
        raise ValueError(f"precision: bf16: has no effect: {model} computes in its own types: leave it out")
    module = loaded.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed(images: NDArray[np.uint8]) -> Embedded:
        amp: Literal["bf16"] | None = "bf16" if precision == "bf16" else None
        found = embed_with_norms(module, images, batch_size=size, device=device, flip=flip, amp=amp)
        refuse_non_finite(found.embeddings)
        return found

    info = loaded.info
    return Embedder(
        function=embed,
        image_size=info.image_size,
        embedding_size=info.embedding_size,
        digest=info.sha256,
        weights=None if loaded.weights_sha256 == info.sha256 else loaded.weights_sha256,
    )
