"""Class centers of a checkpoint, read in parts."""

from pathlib import Path

import pytest
import torch

from rayface.models.row_shard import RowShard
from rayface.models.saved_centers import saved_centers
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import Progress


def test_saved_centers_of_a_run_are_read_in_parts_from_its_newest_checkpoint(tmp_path: Path) -> None:
    centers = torch.randn(9, 4)
    for step, values in ((1, torch.zeros(9, 4)), (2, centers)):
        checkpoint.save(tmp_path, {"head.centers": RowShard.of(values, 0, 9)}, Progress(step=step), keep=2)
    saved = saved_centers(tmp_path)
    assert (saved.num_classes, saved.width) == (9, 4)
    assert torch.equal(saved.read(2, 7), centers[2:7])


def test_saved_centers_of_a_checkpoint_without_any_raise_one_line(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"w": torch.zeros(3)}, Progress(step=1), keep=1)
    with pytest.raises(ValueError, match=r"has no head.centers: its head keeps no class centers"):
        saved_centers(tmp_path)


def test_saved_centers_of_a_corrupt_checkpoint_raise_one_line(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, {"head.centers": RowShard.of(torch.zeros(9, 4), 0, 9)}, Progress(step=1), keep=1)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"is corrupt: .*is missing; give another checkpoint"):
        saved_centers(tmp_path)
