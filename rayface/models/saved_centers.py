"""Class centers of a checkpoint, read in parts without the rest of the state."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rayface.models.row_shard import RowShard
from rayface.models.run_files import valid_checkpoint
from rayface.models.store_files import reader_of
from rayface.storage import AnyPath

CENTERS = "head.centers"


@dataclass(frozen=True, kw_only=True)
class SavedCenters:
    """Class centers on disk: read(first, last) returns rows first..last-1 of the (C, D) matrix."""

    num_classes: int
    width: int
    read: Callable[[int, int], torch.Tensor]


def saved_centers(directory: AnyPath) -> SavedCenters:
    """Return the class centers of a checkpoint, or of a run's newest one, to be read in parts.

    Raises:
        ValueError: the checkpoint is corrupt or holds none.
    """
    folder = valid_checkpoint(directory)
    saved = reader_of(folder).read_metadata().state_dict_metadata.get(CENTERS)
    if not isinstance(saved, TensorStorageMetadata):
        raise ValueError(f"DIR {folder}: has no {CENTERS}: its head keeps no class centers")
    num_classes, width = saved.size

    def read(first: int, last: int) -> torch.Tensor:
        rows = torch.empty(last - first, width, dtype=saved.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP warns that it runs in one process
            dcp.load({CENTERS: RowShard.of(rows, first, num_classes)}, storage_reader=reader_of(folder), no_dist=True)
        return rows

    return SavedCenters(num_classes=num_classes, width=width, read=read)
