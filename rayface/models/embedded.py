"""Embeddings of images, as arrays: what needs no more of a model than these does not import PyTorch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Embedded(NamedTuple):
    """Embeddings of n images.

    `norms` are the lengths of the raw embeddings: the quality of an image for models of adaptive margins (MagFace,
    AdaFace), whose blurred or occluded images have shorter ones.
    """

    embeddings: NDArray[np.float32]  # (n, D) of length 1; NaN if the model returns NaN
    norms: NDArray[np.float32]  # (n,)
