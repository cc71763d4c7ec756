"""Align the faces of photographs into a dataset."""

from __future__ import annotations

from functools import partial

from rayface.alignment.aligned_source import AlignedSettings, AlignedSource
from rayface.alignment.detector import YuNet
from rayface.config import Config
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset
from rayface.files import sha256_of
from rayface.stages.conversion import Tasks, open_sources
from rayface.storage import local_copy


def align_sources(config: Config) -> Dataset:
    """Align the photographs of `align.source`, one or several, into a dataset in `align.out`; see `AlignedSource`.

    Raises:
        ValueError: bad input, one line.
    """
    given = config.align
    detector = local_copy(str(given.detector))
    if not detector.is_file():
        raise ValueError(f"align.detector: {detector}: no such file: download YuNet from the OpenCV Zoo")
    aligned = AlignedSettings(
        side=given.image_size, detector=sha256_of(detector), min_score=given.min_score, quality=given.quality
    )
    settings = ConvertSettings(
        layout=given.layout,
        shard_size=given.shard_size,
        seed=given.seed,
        min_images=given.min_images,
        limit=given.limit,
        join=config.data.join,
    )
    photographs = open_sources(given.source, given.kind, {}, key="align.kind")
    sources = [
        AlignedSource(each, aligned, partial(_detector, str(given.detector), given.min_score)) for each in photographs
    ]
    with Tasks(config.cluster) as tasks:
        return convert(sources, str(given.out), settings, map_parts=tasks.map, key="align.out")


def _detector(path: str, min_score: float) -> YuNet:
    """Load the detector in a task; a file of a store is copied on each node."""
    return YuNet(str(local_copy(path)), min_score)
