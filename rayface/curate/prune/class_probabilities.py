"""True-class probabilities of all images for DiffProb: computed once on the cluster and stored in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import check_embeddings
from rayface.curate.cosines import unit_rows
from rayface.curate.partitions import Partition, read_partition
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.selection_method import Images
from rayface.curate.work_files import WorkPath
from rayface.ray_tasks import map_unordered
from rayface.storage import AnyPath

Centers = Callable[[int, int], torch.Tensor]  # rows [first, last) of the class centers, (n, D)

_CENTERS = "centers.npy"
_COPIED = 65_536  # centers that are copied at a time
_ROWS, _CLASSES = 1024, 8192  # a block of logits: 32 MB


@dataclass(frozen=True, kw_only=True)
class ClassProbabilities:
    """Probabilities of all images in `folder`, one file per partition."""

    folder: WorkPath

    def of(self, images: Images) -> NDArray[np.float64]:
        """Return the probabilities (n,) of images."""
        found: NDArray[np.float64] = np.load(self.path(images.part).local())[images.rows]
        return found

    def path(self, part: int) -> WorkPath:
        return self.folder / f"part-{part:06d}.npy"


def class_probabilities(stats: DatasetStats, run: AnyPath, scale: float) -> ClassProbabilities:
    """Return the probabilities of all images; computes those of partitions without a file.

    The class centers are copied from the run's checkpoint into a file that all tasks memory-map: once per node.
    Memory of a task: the partition, 12 bytes per image, a block of centers and one of logits. Disk: 8 bytes per image
    and, until all are computed, 4 per value of the centers.

    Args:
        run: run directory of the embedding model.
        scale: scale with which its class centers were trained.

    Raises:
        ValueError: the run has no class centers, or they do not fit the labels and embeddings; one line.
    """
    name = hashlib.sha256(json.dumps([str(run), scale]).encode()).hexdigest()[:16]
    found = ClassProbabilities(folder=stats.folder / f"probabilities-{name}")
    done = found.folder.names()
    missing = [each for each in enumerate(stats.partitions.partitions) if found.path(each[0]).path.name not in done]
    if not missing:
        return found
    centers = found.folder / _CENTERS
    if not centers.exists():
        _copy_centers(run, centers)

    def compute(numbered: tuple[int, Partition]) -> None:
        torch.set_num_threads(1)
        part, partition = numbered
        rows, _ = read_partition(partition)
        mapped = np.load(centers.local(), mmap_mode="r")
        if mapped.shape[1] != rows.embeddings.shape[1]:
            raise ValueError(
                f"prune.head: {run}: its class centers are of length {mapped.shape[1]}, the embeddings of "
                f"{rows.embeddings.shape[1]}: must be the run whose model embedded the images"
            )
        values = true_class_probabilities(
            lambda first, last: torch.from_numpy(mapped[first:last].copy()),
            len(mapped),
            rows.embeddings,
            rows.labels,
            scale=scale,
        )
        with found.path(part).writing() as stream:
            np.save(stream, values)

    num_rows = sum(partition.num_rows for _, partition in missing)
    for _ in map_unordered(compute, missing, "compute class probabilities", rows=num_rows):
        pass
    centers.delete()
    return found


def true_class_probabilities(
    centers: Centers, num_classes: int, embeddings: ArrayLike, labels: ArrayLike, *, scale: float = 64.0
) -> NDArray[np.float64]:
    """Return the softmax probability of each image's own class, without a margin.

    p_i = exp(s cos(f_i, w_y)) / sum_j exp(s cos(f_i, w_j)) with the scale s that the centers w were trained with. The
    sum over the other classes is kept apart, so probabilities close to 1 differ as their remainders do.

    Args:
        centers: reads class centers of any norm.
        embeddings: (N, D) of any norm, of the model that the centers are of; may be a memory map.
        labels: (N,) below num_classes.

    Returns:
        (N,) float64. N * num_classes * D multiplications, logits in float32. Memory: 12 bytes per image, a block of
        8,192 centers and one of logits; embeddings are read once per block of centers.

    Raises:
        ValueError: wrong shapes; a label without a class center; a scale that is not positive.
    """
    values, own = check_embeddings(embeddings), np.asarray(labels)
    if own.shape != (len(values),) or own.dtype.kind not in "iu":
        raise ValueError(f"labels shape {own.shape} dtype {own.dtype}: must be ({len(values)},) integers")
    if len(own) and not 0 <= own.min() <= own.max() < num_classes:
        raise ValueError(f"labels from {own.min()} to {own.max()}: must be below {num_classes}, the class centers")
    if not scale > 0:
        raise ValueError(f"scale {scale}: must be above 0, that of the training")
    true, others = torch.zeros(len(values)), torch.full((len(values),), -torch.inf)
    for first in range(0, num_classes, _CLASSES):
        last = min(first + _CLASSES, num_classes)
        block = torch.nn.functional.normalize(centers(first, last).float(), dim=1)
        for start in range(0, len(values), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(values)))
            logits = torch.from_numpy(unit_rows(values, rows).astype(np.float32)) @ block.T * scale
            here = np.flatnonzero((own[rows] >= first) & (own[rows] < last))
            place = here, own[rows[here]] - first
            true[rows[here]] = logits[place]
            logits[place] = -torch.inf
            others[rows] = torch.logaddexp(others[rows], logits.logsumexp(dim=1))
    return torch.sigmoid(true.double() - others.double()).numpy()


def _copy_centers(run: AnyPath, path: WorkPath) -> None:
    from rayface.models.saved_centers import saved_centers  # slow to import

    centers = saved_centers(run)
    header = {"descr": "<f4", "fortran_order": False, "shape": (centers.num_classes, centers.width)}
    with path.writing() as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for first in range(0, centers.num_classes, _COPIED):
            rows = centers.read(first, min(first + _COPIED, centers.num_classes))
            stream.write(rows.float().contiguous().numpy().astype("<f4", copy=False).tobytes())
