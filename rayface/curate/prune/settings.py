"""What decides a core set, and what must hold of it before a job starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayface.curate.clean.clean import CleanOptions, check_options
from rayface.curate.identities import check_keep, check_min_images
from rayface.curate.prune.selection import METHODS
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import Embeddings
from rayface.training.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """What decides the core set.

    Attributes:
        method: face_nms, random, herding or diffprob.
        threshold: of the cosine, in (-1, 1]; face_nms drops faces that are more alike. Of diffprob, a probability.
        keep: share of the faces to keep, in (0, 1]; either this or threshold.
        min_images: kept of every identity that has so many.
        global_weight: what sparsity among all faces counts in the score, beside that within the identity (1).
        seed: of random, and of the sample that the threshold is searched on.
        baselines: herding or diffprob, to compare with at the same ratio, beside random.
        head: run directory of the embedding model, for diffprob, which needs its class centers.
        clean: what to look for, and drop or merge, before.
        block_size: bytes of embeddings that a task holds.
    """

    method: str = "face_nms"
    threshold: float | None = None
    keep: float | None = None
    min_images: int = 1
    global_weight: float = 0.0
    seed: int = 0
    baselines: tuple[str, ...] = ()
    head: str | None = None
    clean: CleanOptions = field(default_factory=CleanOptions)
    block_size: int = 64 * 2**20


def check_settings(settings: PruneSettings) -> None:
    """Raise ValueError, one line, for settings that cannot be."""
    if settings.method not in METHODS:
        raise ValueError(f"--method: {settings.method!r}: must be one of {', '.join(METHODS)}")
    if (settings.threshold is None) == (settings.keep is None):
        given = "both are" if settings.keep is not None else "neither is"
        raise ValueError(f"--threshold, --keep: {given} given: must be one of the two, for example --keep 0.6")
    if settings.threshold is not None and settings.method not in ("face_nms", "diffprob"):
        raise ValueError(f"--threshold: is of face_nms: give --keep for {settings.method}")
    if settings.threshold is not None and not -1 < settings.threshold <= 1:
        raise ValueError(f"--threshold: {settings.threshold}: must be above -1 and at most 1, it is a cosine")
    if settings.keep is not None:
        check_keep(settings.keep)
    check_min_images(settings.min_images)
    if "diffprob" in (settings.method, *settings.baselines) and settings.head is None:
        raise ValueError("--head: is not given: must be the run whose model embedded the faces, for diffprob")
    if settings.head is not None and not RunDirectory(Path(settings.head)).has_started():
        raise ValueError(
            f"--head: {settings.head}: is not a run directory (no config.yaml): give the run whose model embedded the "
            "faces"
        )
    if not settings.global_weight >= 0:
        raise ValueError(f"--global-weight: {settings.global_weight}: must be 0 or more")
    for name in settings.baselines:
        if name not in METHODS[1:]:
            raise ValueError(f"--baseline: {name!r}: must be one of {', '.join(METHODS[1:])}")
    check_options(settings.clean)


def check_head(head: object | None, method: str, baselines: Sequence[str]) -> None:
    """Raise ValueError where a head is given for nothing: DiffProb compares every face with every class center."""
    if head is not None and "diffprob" not in (method, *baselines):
        raise ValueError("--head: is of diffprob alone: add --baseline diffprob or --method diffprob, or leave it out")


def check_exclude(exclude: object | None, above: float | None) -> None:
    if (above is None) != (exclude is None):
        raise ValueError("--exclude, --above: must be given together: embeddings of a test set, and a cosine")


def check_clean(settings: PruneSettings, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> None:
    check_exclude(test, settings.clean.test)
    if test is not None and test.size != source.size:
        raise ValueError(
            f"--exclude: its embeddings are of length {test.size}, --embeddings of {source.size}: both must come from "
            "one model"
        )
    if settings.clean.bytes and dataset is None:
        raise ValueError("--bytes: needs --data, where the bytes are")
