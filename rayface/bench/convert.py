"""Benchmark of `rayface convert` by format of the source, against a copy of the same files in the same run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rayface.bench.source_files import WRITERS
from rayface.data.convert import convert
from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import open_source


@dataclass(frozen=True, kw_only=True)
class ConvertSpeed:
    """Speed of one format: images/s of the conversion and of a copy of its files, and their ratio."""

    source: str
    images: int
    megabytes: float
    convert_images_per_second: float
    copy_images_per_second: float
    share_of_copy: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def bench_convert(data: str, *, images: int, formats: Sequence[str], folder: Path | None = None) -> list[ConvertSpeed]:
    """Write the first images of a dataset in every format, copy the files, and convert them in threads.

    Args:
        folder: disk to measure; None: the folder for temporary files.

    Raises:
        ValueError: an unknown format, or too few images.
    """
    for name in formats:
        if name not in WRITERS:
            raise ValueError(f"formats: {name!r}: must be one of {', '.join(WRITERS)}")
    dataset = open_dataset(data)
    index = dataset.index.select(np.arange(min(images, dataset.num_images)))
    samples = [found for found in read_samples(dataset.shard_paths(), index) if isinstance(found, Sample)]
    if len(samples) < 2:
        raise ValueError(f"data: {data}: has {len(samples)} images: must be at least 2")
    return [_measure(name, samples, folder) for name in formats or WRITERS]


def _measure(name: str, samples: Sequence[Sample], folder: Path | None) -> ConvertSpeed:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        files = Path(work, "source")
        files.mkdir()
        source = WRITERS[name](files, samples)
        num_bytes = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        start = time.perf_counter()
        shutil.copytree(files, Path(work, "copy"))
        copied = time.perf_counter() - start
        options = {"image_size": None} if name == "folder" else {}
        start = time.perf_counter()
        dataset = convert(open_source(name, source, options), Path(work, "out"))
        converted = time.perf_counter() - start
    return ConvertSpeed(
        source=name,
        images=dataset.num_images,
        megabytes=num_bytes / 1e6,
        convert_images_per_second=dataset.num_images / converted,
        copy_images_per_second=dataset.num_images / copied,
        share_of_copy=copied / converted,
    )


def as_table(found: Sequence[ConvertSpeed]) -> list[dict[str, str]]:
    """Return the rows of the printed table."""
    return [
        {
            "source": each.source,
            "images": f"{each.images:,}",
            "MB": f"{each.megabytes:,.0f}",
            "convert, images/s": f"{each.convert_images_per_second:,.0f}",
            "copy, images/s": f"{each.copy_images_per_second:,.0f}",
            "share of copy": f"{each.share_of_copy:.0%}",
        }
        for each in found
    ]
