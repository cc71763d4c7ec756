"""progress.json: the values that a checkpoint holds beside its tensors."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.models.run_files import PROGRESS
from rayface.storage import AnyPath
from rayface.training.recovery.rollback import Recovery

Values = Mapping[str, Any]
"""A JSON object whose keys belong to another module."""


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Name, digest and licence of the training data, for the model card."""

    name: str
    digest: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class MlflowPosition:
    """Position in MLflow: id of the run, None before it has one, and the last logged step."""

    run_id: str | None
    last_step: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a run at a step; values that checkpoints of older versions lack are None or empty."""

    step: int
    epoch: float | None = None
    plan: Values = field(default_factory=dict)
    """The order of the samples, `vars` of a SampleOrder."""
    total_steps: int | None = None
    batch_size: int | None = None
    """Global batch size."""
    accuracy: float | None = None
    """Accuracy of the last validation."""
    dataset: DatasetFacts | None = None
    schedule: Values = field(default_factory=dict)
    """The schedule's state_dict."""
    recovery: Recovery = field(default_factory=Recovery)
    faults: list[list[Any]] = field(default_factory=list)
    """Corrupt samples, see FaultCounter.state."""
    mlflow: MlflowPosition | None = None
    config: Values | None = None
    """See `saved_config`."""
    workers: int | None = None
    head: Values = field(default_factory=dict)
    """Values of the head that are not tensors."""
    network: str = "backbone"
    """The network to evaluate and to export: the prefix of its tensors."""

    @classmethod
    def from_dict(cls, values: Values) -> Self:
        """Return the progress of a parsed progress.json; unknown keys are ignored.

        Raises:
            TypeError: the step is missing, or a value has another type.
        """
        known = {key: values[key] for key in (own.name for own in fields(cls)) if key in values}
        for key, kind in (("dataset", DatasetFacts), ("recovery", Recovery), ("mlflow", MlflowPosition)):
            if known.get(key) is not None:
                known[key] = kind(**known[key])
        return cls(**known)

    @classmethod
    def read(cls, folder: AnyPath) -> Self:
        """Return the progress of a checkpoint.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        return cls.from_dict(json.loads((folder / PROGRESS).read_text()))

    def as_dict(self) -> dict[str, object]:
        """Return the content of progress.json."""
        return asdict(self)


def saved_config(config: Config) -> Values:
    """Return the config to store in a checkpoint: without credentials and train.output."""
    return masked(configs.to_dict(replace(config, train=replace(config.train, output=None)), configs.TRAINING))
