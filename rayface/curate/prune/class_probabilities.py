"""True-class probabilities of all faces for DiffProb: computed once, by a job, and kept beside the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.curate.partitions import Partition, read_partition
from rayface.curate.prune.diffprob import true_class_probabilities
from rayface.ray_tasks import map_unordered
from rayface.storage import atomic_stream

_CENTERS = "centers.npy"
_ROWS = 65_536  # centers that are copied at a time


def keep_probabilities(folder: Path, partitions: Sequence[Partition], run: Path, scale: float) -> None:
    """Compute the probabilities of every partition that has none yet.

    The class centers are read from the run's checkpoint once, into a file that all tasks map: a node holds them once.
    Memory of a task: the partition, 12 bytes for each of its faces, and a block of centers and of logits.

    Args:
        folder: for the probabilities, 8 bytes a face, and while the job runs the centers, 4 bytes a value; on a disk
            that all nodes share.
        run: whose class centers they are.
        scale: that these were trained with.

    Raises:
        ValueError: the run has no class centers, or not those of these labels and embeddings; one line.
    """
    missing = [(part, partition) for part, partition in enumerate(partitions) if not _path(folder, part).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    centers = folder / _CENTERS
    if not centers.exists():
        _copy_centers(run, centers)

    def compute(numbered: tuple[int, Partition]) -> dict[str, Any]:
        torch.set_num_threads(1)
        part, partition = numbered
        rows, _ = read_partition(partition)
        mapped = np.load(centers, mmap_mode="r")
        if mapped.shape[1] != rows.embeddings.shape[1]:
            raise ValueError(
                f"--head: {run}: its class centers are of length {mapped.shape[1]}, the embeddings of "
                f"{rows.embeddings.shape[1]}: must be the run whose model embedded the faces"
            )
        found = true_class_probabilities(
            lambda first, last: torch.from_numpy(mapped[first:last].copy()),
            len(mapped),
            rows.embeddings,
            rows.labels,
            scale=scale,
        )
        with atomic_stream(str(_path(folder, part))) as stream:
            np.save(stream, found)
        return {}

    rows = sum(partition.num_rows for _, partition in missing)
    for _ in map_unordered(compute, missing, "compute class probabilities", rows=rows):
        pass
    centers.unlink()


def read_probabilities(folder: Path, part: int) -> NDArray[np.float64]:
    """Return those of the faces of a partition, (n,), in the order in which it is read."""
    found: NDArray[np.float64] = np.load(_path(folder, part))
    return found


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.npy"


def _copy_centers(run: Path, path: Path) -> None:
    from rayface.training.checkpointing.tools import saved_centers  # seconds to import

    centers = saved_centers(run)
    header = {"descr": "<f4", "fortran_order": False, "shape": (centers.num_classes, centers.width)}
    with atomic_stream(str(path)) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for first in range(0, centers.num_classes, _ROWS):
            rows = centers.read(first, min(first + _ROWS, centers.num_classes))
            stream.write(rows.float().contiguous().numpy().astype("<f4", copy=False).tobytes())
