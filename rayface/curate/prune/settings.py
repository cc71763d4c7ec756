"""Checks of the settings of a prune job before it starts, beside the validators of their fields."""

from __future__ import annotations

from rayface.config import CleanConfig, Config
from rayface.curate.clean.clean import check_options
from rayface.curate.prune.methods import check_methods
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import Embeddings


def check_settings(config: Config) -> None:
    """Raise ValueError, one line, for settings that contradict each other."""
    settings = config.prune
    check_options(config.clean)
    if settings.threshold is None and settings.keep is None:
        raise ValueError(
            "prune.threshold, prune.keep: neither is given: set one of them, for example prune.keep=0.6; prune.keep=1 "
            "keeps all that cleaning leaves"
        )
    check_methods(settings)
    if settings.write_shards and not settings.data:
        raise ValueError("prune.write_shards: requires prune.data, the dataset that was embedded")
    check_exclude(config.clean)


def check_exclude(clean: CleanConfig) -> None:
    if (clean.above is None) != (clean.exclude is None):
        raise ValueError("clean.exclude, clean.above: must be given together: embeddings of a test set, and a cosine")


def check_clean(clean: CleanConfig, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> None:
    """Raise ValueError, one line, if the inputs of cleaning do not fit together."""
    if test is not None and test.size != source.size:
        raise ValueError(
            f"clean.exclude: its embeddings are of length {test.size}, prune.embeddings of {source.size}: both must "
            "come from one model"
        )
    if clean.bytes and dataset is None:
        raise ValueError("clean.bytes: requires prune.data, the dataset with the files")
