"""Tars of real images, and what scans, an open dataset and reading by index find in them."""

from pathlib import Path

import cv2
import numpy as np

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.sequential import scan_shard
from tests.data.shard_files import write_tar

Files = list[tuple[str, bytes]]


def picture(seed: int, suffix: str) -> bytes:
    """Return a smooth image of 32 x 32 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(f".{suffix}", cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC))[1].tobytes()


JPEG = [picture(i, "jpg") for i in range(6)]


def scanned(path: Path, files: Files) -> tuple[list[tuple[str, int, bytes]], list[tuple[str | None, str, int]]]:
    """Return (key, label, image) of the samples of a tar with these files and (member, kind, num_lost) of its faults.

    Asserts that an open dataset and reading by index find the same.
    """
    write_tar(path / "a.tar", files)
    entries = list(scan_shard(path / "a.tar"))
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    faults = [(f.member, f.kind, f.num_lost) for f in entries if isinstance(f, Fault)]
    quick = list(scan_shard(path / "a.tar", read_jpeg=False))
    assert [entry for entry in quick if isinstance(entry, Fault)] == [e for e in entries if isinstance(e, Fault)]
    if samples:
        dataset = open_dataset(path, max_corrupt_fraction=1)
        assert [(f.member, f.kind, f.num_lost) for f in dataset.faults] == faults
        assert read_samples(dataset.shard_paths(), dataset.index) == samples
    return [(s.key, s.label, s.jpeg) for s in samples], faults
