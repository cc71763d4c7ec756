"""The images of each identity, as positions in the sample index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.data.index import count


@dataclass(frozen=True)
class LabelGroups:
    """Positions in the index grouped by label; identities without images are left out.

    Attributes:
        positions: (N,), one group after the other, rising within a group; int32 unless N needs more.
        starts: int64 (identities + 1,), where each group starts.
    """

    positions: NDArray[np.integer]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1


def group_by_label(label: NDArray[np.int32], num_classes: int) -> LabelGroups:
    """Group the samples of an index by their label (N,).

    Memory: 4 bytes a sample for the result, 8 more while sorting.
    """
    counts = count(label, num_classes)
    positions = np.argsort(label, kind="stable")
    if len(label) <= np.iinfo(np.int32).max:
        positions = positions.astype(np.int32)
    return LabelGroups(positions, np.concatenate([[0], np.cumsum(counts[counts > 0])]))
