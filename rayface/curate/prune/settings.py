"""What must hold of the settings of a prune job before it starts, beside the rules of their fields."""

from __future__ import annotations

from pathlib import Path

from rayface.config import CleanConfig, Config, PruneConfig
from rayface.curate.clean.clean import check_options
from rayface.curate.prune.selection import METHODS
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import Embeddings
from rayface.training.run_directory import RunDirectory


def check_settings(config: Config) -> None:
    """Raise ValueError, one line, for settings that contradict each other."""
    settings, methods = config.prune, (config.prune.method, *config.prune.baselines)
    if settings.method not in METHODS:
        raise ValueError(f"prune.method: {settings.method!r}: must be one of {', '.join(METHODS)}")
    if settings.threshold is None and settings.keep is None:
        raise ValueError("prune.threshold, prune.keep: neither is given: set one of them, for example prune.keep=0.6")
    if settings.threshold is not None and settings.method not in ("face_nms", "diffprob"):
        raise ValueError(f"prune.threshold: is of face_nms and diffprob: set prune.keep for {settings.method}")
    for name in settings.baselines:
        if name not in METHODS[1:]:
            raise ValueError(f"prune.baselines: {name!r}: must be of {', '.join(METHODS[1:])}")
    _check_head(settings, needed="diffprob" in methods)
    if settings.write_shards and not settings.data:
        raise ValueError("prune.write_shards: needs prune.data, the dataset that was embedded")
    check_options(config.clean)
    check_exclude(config.clean)


def _check_head(settings: PruneConfig, *, needed: bool) -> None:
    """DiffProb compares every image with every class center."""
    if needed and settings.head is None:
        raise ValueError("prune.head: is not set: must be the run whose model embedded the images, for diffprob")
    if settings.head is not None and not needed:
        raise ValueError("prune.head: is of diffprob alone: add it to prune.method or prune.baselines, or leave it out")
    if settings.head is not None and not RunDirectory(Path(settings.head)).has_started():
        raise ValueError(f"prune.head: {settings.head}: is not a run directory: give the run of the embedding model")


def check_exclude(clean: CleanConfig) -> None:
    if (clean.above is None) != (clean.exclude is None):
        raise ValueError("clean.exclude, clean.above: must be given together: embeddings of a test set, and a cosine")


def check_clean(clean: CleanConfig, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> None:
    """Raise ValueError, one line, where the inputs of cleaning do not go together."""
    if test is not None and test.size != source.size:
        raise ValueError(
            f"clean.exclude: its embeddings are of length {test.size}, prune.embeddings of {source.size}: both must "
            "come from one model"
        )
    if clean.bytes and dataset is None:
        raise ValueError("clean.bytes: needs prune.data, where the files are")
