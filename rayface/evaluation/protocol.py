"""Interface of evaluation protocols: images to embed, and scoring of the embeddings."""

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
    """Result of a protocol; each protocol adds its figures in a subclass.

    Attributes:
        roc: ROC curve for the plot; None if the protocol has none.
    """

    roc: Roc | None = None

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Return the figures by name, as JSON types, for evaluation.json and --json."""

    @property
    @abstractmethod
    def main_figure(self) -> float:
        """The figure that selects the best checkpoint in training; higher is better."""

    def as_dict(self) -> dict[str, object]:
        """Return the figures and the points of the curve, as JSON types."""
        return {**self.figures(), **({} if self.roc is None else {"roc": thinned(self.roc.far, self.roc.tar)})}


class EvaluationProtocol(ABC):
    """Evaluation protocol.

    It is opened once with the settings of `evaluate`, and scores every model or checkpoint. Its images are numbered
    from 0; in training every rank reads and embeds a part of them, `rayface evaluate` embeds all.
    """

    @classmethod
    @abstractmethod
    def is_configured(cls, settings: EvaluateConfig) -> bool:
        """Return whether the settings configure this protocol, without reading anything.

        Raises:
            ValueError: the settings are incomplete or contradict each other; one line.
        """

    @classmethod
    @abstractmethod
    def open(cls, settings: EvaluateConfig, *, image_size: int) -> EvaluationProtocol:
        """Read the inputs.

        Args:
            image_size: side of the images, pixels.

        Raises:
            ValueError: an input is missing or invalid; one line.
        """

    @property
    def inputs(self) -> dict[str, str]:
        """Names and paths of the inputs, for evaluation.json."""
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
        """Score the embeddings.

        Args:
            embeddings: (num_images, D) of length 1, in the order of the images.
            done: called after every block of work; the watchdog counts it as progress.
        """
