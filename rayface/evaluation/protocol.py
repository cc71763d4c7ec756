"""The interface of evaluation protocols: what is embedded, and how the embeddings are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.config import EvaluateConfig
from rayface.evaluation.verification import thinned

Figure = float | int | Mapping[str, float]


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic: true acceptance rates `tar` (n,) at false acceptance rates `far` (n,)."""

    far: NDArray[np.float64]
    tar: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProtocolResult(ABC):
    """What a protocol has measured; a protocol adds its figures in a subclass.

    Attributes:
        roc: for the plot; None if the protocol has none.
    """

    roc: Roc | None = None

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Return the figures by name, in JSON's types, as evaluation.json and --json have them."""

    @property
    @abstractmethod
    def main_figure(self) -> float:
        """The figure by which training keeps its best checkpoint: higher is better."""

    def as_dict(self) -> dict[str, object]:
        """Return the figures and points of the curve, in JSON's types."""
        return {**self.figures(), **({} if self.roc is None else {"roc": thinned(self.roc.far, self.roc.tar)})}


class EvaluationProtocol(ABC):
    """A way to measure a model.

    It is opened once with the settings of `evaluate`, and scored for every model or checkpoint. Its images are numbered
    from 0; training reads and embeds parts of them on several ranks, `rayface evaluate` all of them.
    """

    @classmethod
    @abstractmethod
    def is_configured(cls, settings: EvaluateConfig) -> bool:
        """Return whether the settings ask for this protocol, without reading anything.

        Raises:
            ValueError: they ask for it in part, or contradict each other; one line.
        """

    @classmethod
    @abstractmethod
    def open(cls, settings: EvaluateConfig, *, image_size: int) -> EvaluationProtocol:
        """Read the inputs.

        Args:
            image_size: side of the images, pixels.

        Raises:
            ValueError: an input is missing or wrong; one line.
        """

    @property
    def inputs(self) -> dict[str, str]:
        """What is measured on, for evaluation.json: names and paths."""
        return {}

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Number of images to embed."""

    @abstractmethod
    def read_images(self, first: int, last: int) -> NDArray[np.uint8]:
        """Return images `first` to `last` - 1: uint8 RGB (last - first, size, size, 3).

        Raises:
            ValueError: an image cannot be read; one line.
        """

    @abstractmethod
    def score(self, embeddings: NDArray[np.float32], done: Callable[[], None] = lambda: None) -> ProtocolResult:
        """Measure.

        Args:
            embeddings: (num_images, D) of length 1, in the order of the images.
            done: called after every block of work, for those that watch for a stalled process.
        """
