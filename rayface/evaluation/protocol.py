"""Interface of evaluation protocols: images to embed, and scoring of the embeddings."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.config import EvaluateConfig
from rayface.data.dataset import Dataset
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.pair_scores import PairScores
from rayface.evaluation.pictures import Pictures
from rayface.evaluation.verification import thinned
from rayface.models.embedded import Embedded

_BLOCK = 1 << 20  # rows of an index hashed at a time

Figure = float | int | None | Sequence[float | None] | Mapping[str, object]


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
        pair_scores: outcome of every pair, for pair_scores.parquet; None if the protocol has none.
        pictures: what the report shows beside figures; None if there is nothing to show.
        not_measured: why a figure is missing, by its name; a key of a mapping is written `tar_at_far.1e-06`.
    """

    roc: Roc | None = None
    pictures: Pictures | None = None
    pair_scores: PairScores | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """Return the figures by name, as JSON types, for evaluation.json and --json; None: see `not_measured`."""

    @property
    @abstractmethod
    def main_figure(self) -> float:
        """The figure that selects the best checkpoint in training; higher is better, NaN if it is not measured."""

    def summary(self) -> dict[str, object]:
        """Return the figures and the reasons of missing ones, as JSON types."""
        return {**self.figures(), **({"not_measured": dict(self.not_measured)} if self.not_measured else {})}

    def curves(self) -> dict[str, object]:
        """Return the name of the set, points of the curves by name, and the worst pairs, as JSON types."""
        pictures = {} if self.pictures is None else self.pictures.as_dict()
        return {**pictures, **({} if self.roc is None else {"roc": thinned(self.roc.far, self.roc.tar)})}


def evaluation_dict(results: Mapping[str, ProtocolResult]) -> dict[str, object]:
    """Return what --json prints: the figures of the first protocol, and the summaries of all under "protocols"."""
    first = next(iter(results.values()))
    return {**first.figures(), "protocols": {name: result.summary() for name, result in results.items()}}


def figure_rows(figures: Mapping[str, object], prefix: str = "", limits: object = None) -> list[dict[str, object]]:
    """Return a row for each number among the figures: figure, value, and low and high of its interval if it has one."""
    rows: list[dict[str, object]] = []
    for name, value in figures.items():
        interval = figures.get(f"{name.removesuffix('_mean')}_interval")
        if interval is None and isinstance(limits, Mapping):
            interval = limits.get(name)
        if isinstance(value, Mapping):
            rows += figure_rows(value, f"{prefix}{name}.", interval)
        elif isinstance(value, int | float) or value is None:
            low, high = interval if isinstance(interval, Sequence) else (None, None)
            rows.append({"figure": f"{prefix}{name}", "value": value, "low": low, "high": high})
    return rows


def card_figures(results: Mapping[str, ProtocolResult]) -> dict[str, object]:
    """Return the figures for a model card: those of the first protocol, and, if there are several, all by protocol."""
    figures = {name: result.figures() for name, result in results.items()}
    first = next(iter(figures.values()))
    return {**first, "protocols": figures} if len(figures) > 1 else dict(first)


def scores_of(results: Mapping[str, ProtocolResult]) -> dict[str, PairScores]:
    """Return the outcome of the pairs of each protocol that has pairs."""
    return {name: result.pair_scores for name, result in results.items() if result.pair_scores is not None}


def finite_numbers(figures: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of nested figures for tracking, with the parts of a name between slashes."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= finite_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def evaluation_content(results: Mapping[str, ProtocolResult]) -> dict[str, object]:
    """Return what evaluation.json holds: `evaluation_dict`, the ROC of the first protocol, and the curves of all."""
    first = next(iter(results.values()))
    curves = {name: own for name, result in results.items() if (own := result.curves())}
    roc = {"roc": first.curves()["roc"]} if first.roc is not None else {}
    return {**evaluation_dict(results), **roc, **({"curves": curves} if curves else {})}


class EvaluationProtocol(ABC):
    """Evaluation protocol.

    It is opened once with its settings, and scores every model or checkpoint. Its images are numbered from 0; in
    training every rank reads and embeds a part of them.
    """

    @classmethod
    @abstractmethod
    def settings_of(cls, evaluate: EvaluateConfig) -> Any | None:
        """Return the protocol's own settings, None if its inputs are not set; nothing is read.

        Raises:
            ValueError: the settings are incomplete or contradict each other; one line.
        """

    @classmethod
    @abstractmethod
    def open(cls, settings: Any, *, image_size: int) -> EvaluationProtocol:
        """Read the inputs.

        Args:
            settings: result of `settings_of`.
            image_size: side of the images, pixels.

        Raises:
            ValueError: an input is missing or invalid; one line.
        """

    @classmethod
    def open_each(cls, name: str, settings: Any, *, image_size: int) -> dict[str, EvaluationProtocol]:
        """Read the inputs; return the protocols that are scored separately, by the names of their results.

        Args:
            name: name in the registry, and of the result unless there are several.
            settings, image_size: see `open`.
        """
        return {name: cls.open(settings, image_size=image_size)}

    @property
    def inputs(self) -> dict[str, str]:
        """Names and paths of the inputs, for evaluation.json."""
        return {}

    @property
    def source(self) -> ImageRows | None:
        """The images as rows of a dataset, whose embeddings may be given by the user. None: they are of no dataset."""
        return None

    @property
    def digest(self) -> str:
        """Digest of the images, by which their embeddings are cached; "": they are not cached."""
        return "" if self.source is None else _readable_digest(self.source.dataset)

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

    def read_readable(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the images as `read_images` does, and whether each is readable; the others' pixels are 0.

        For protocols that leave out corrupt images; their embeddings are 0.
        """
        return self.read_images(first, last), np.ones(last - first, bool)

    @abstractmethod
    def score(self, embedded: Embedded, done: Callable[[], None] = lambda: None) -> ProtocolResult:
        """Score the embeddings.

        Args:
            embedded: embeddings (num_images, D) of length 1 and norms (num_images,), in the order of the images. An
                embedding is 0 for an image that is not readable, and not finite if the model's output is not; norms
                are NaN if they are not known.
            done: called after every block of work; the watchdog counts it as progress.
        """

    def score_without(self, left_out: NDArray[np.bool_], embedded: Embedded) -> ProtocolResult | None:
        """Score without some images (num_images,), such as leaked ones; None if the protocol cannot leave them out."""
        return None


def required_sources(protocols: Mapping[str, EvaluationProtocol], key: str, remedy: str) -> dict[str, ImageRows]:
    """Return the sources of protocols, by name.

    Args:
        key: config key that requires them.

    Raises:
        ValueError: the images of a protocol are of no dataset; one line.
    """
    found = {}
    for name, protocol in protocols.items():
        if protocol.source is None:
            raise ValueError(f"{key}: protocol {name}: has images of no dataset: {remedy}")
        found[name] = protocol.source
    return found


def _readable_digest(dataset: Dataset) -> str:
    """Return the digest of a dataset; if samples were lost, that of the rows that are left, whose numbers differ."""
    if not dataset.faults:
        return dataset.digest
    index = dataset.index
    digest = hashlib.sha256(dataset.digest.encode())
    for start in range(0, len(index), _BLOCK):
        some = index.select(slice(start, start + _BLOCK))
        digest.update(some.shard.tobytes() + some.offset.tobytes())
    return digest.hexdigest()


def number(value: float) -> float | None:
    """Return a figure as JSON has it: None for NaN."""
    return None if math.isnan(value) else float(value)


def fault_of(embeddings: NDArray[np.floating]) -> str | None:
    """Return why no figure can be measured from embeddings (n, D), None if all are usable."""
    lengths = np.linalg.norm(embeddings, axis=1)
    if bad := int(np.count_nonzero(~np.isfinite(lengths))):
        return f"{bad} of {len(lengths)} embeddings are NaN or infinite: the model diverged"
    if empty := int(np.count_nonzero(lengths == 0)):
        return f"{empty} of {len(lengths)} images have no embedding"
    return None
