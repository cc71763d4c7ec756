"""Check of an evaluation for leaks: the certificate of each protocol, with its figures without leaked images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from rayface.config import EvaluateConfig
from rayface.config_fields import refuse_ineffective
from rayface.data.dataset import Dataset, open_dataset
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.evaluation.leaks import Leaks, add_by_embedding, find_leaks
from rayface.evaluation.protocol import EvaluationProtocol, ProtocolResult, required_sources
from rayface.models.embedded import Embedded
from rayface.progress import phase
from rayface.storage import DataError


@dataclass(frozen=True, kw_only=True)
class LeakCertificate:
    """What of a protocol's images is in the training set.

    Attributes:
        training: directories of the training set; `training_digest` is its digest.
        num_images: number of test images.
        counts: numbers of leaked images and their identities, by way; None: not examined.
        above: cosine above which a training image counts as the same image.
        examples: the most similar test and training images.
        without: the result without leaked images; None if nothing leaked, or the protocol cannot leave images out.
    """

    training: tuple[str, ...]
    training_digest: str
    num_images: int
    counts: Mapping[str, Mapping[str, int] | None]
    above: float
    examples: tuple[Mapping[str, object], ...]
    without: ProtocolResult | None

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, as JSON types."""
        values = {**vars(self), "training": list(self.training), "examples": list(self.examples)}
        return {**values, "without": None if self.without is None else self.without.summary()}


class LeakCheck:
    """Searches evaluate.leak_check, a training set, for the images of protocols."""

    def __init__(
        self,
        settings: EvaluateConfig,
        protocols: Mapping[str, EvaluationProtocol],
        *,
        weights: str | None = None,
        embedding_size: int,
    ) -> None:
        """Open the training set and its embeddings.

        Args:
            protocols: by name; with a training set, their images must be of datasets.
            weights: sha256 of the evaluated model's weights; None: unknown.
            embedding_size: that of the evaluated model.

        Raises:
            ValueError: the inputs are missing or contradict each other; one line.
        """
        if settings.leak_embeddings is not None and not settings.leak_check:
            raise ValueError("evaluate.leak_embeddings: requires evaluate.leak_check, the dataset that was embedded")
        rule = "must be with evaluate.leak_embeddings"
        refuse_ineffective(settings, "leak_above", settings.leak_embeddings is not None, rule, prefix="evaluate.")
        self._above = settings.leak_above
        self._training: Dataset | None = None
        self._embeddings: Embeddings | None = None
        if settings.leak_check:
            self._sources = required_sources(protocols, "evaluate.leak_check", "convert them to a dataset first")
            self._training = open_dataset(settings.leak_check, join="separate")
        if settings.leak_embeddings is not None:
            self._embeddings = open_embeddings(settings.leak_embeddings, "evaluate.leak_embeddings")
            embedded_by = self._embeddings.model
            if embedded_by != weights and embedded_by and weights:
                raise DataError(
                    f"evaluate.leak_embeddings: {settings.leak_embeddings}: were embedded by the model "
                    f"{embedded_by[:12]}, this one is {weights[:12]}: embed the training set with the evaluated model"
                )
            if self._embeddings.size != embedding_size:
                raise ValueError(
                    f"evaluate.leak_embeddings: have {self._embeddings.size} dimensions, the model has "
                    f"{embedding_size}: must be of the same model"
                )

    @functools.cached_property
    def _found(self) -> dict[str, Leaks]:
        """Leaks by name and by bytes of all protocols, for which the training set is read once."""
        assert self._training is not None
        return find_leaks(self._sources, self._training)

    def __call__(self, name: str, protocol: EvaluationProtocol, embedded: Embedded) -> LeakCertificate | None:
        """Return the certificate of a protocol; None without a training set."""
        training = self._training
        if training is None:
            return None
        found, test = self._found[name], self._sources[name]
        if self._embeddings is not None:
            found = add_by_embedding(found, embedded.embeddings, self._embeddings, above=self._above)
        without = None
        if found.leaked.any():
            with phase(f"score {name} without leaked images"):
                without = protocol.score_without(found.leaked, embedded)
        keys = test.dataset.keys() if found.by_embedding is not None else []
        return LeakCertificate(
            training=training.roots,
            training_digest=training.digest,
            num_images=len(test),
            counts=found.counts(),
            above=self._above,
            examples=tuple(found.examples([keys[row] for row in test.rows.tolist()] if keys else [])),
            without=without,
        )
