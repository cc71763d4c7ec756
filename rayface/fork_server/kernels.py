"""Compiles numba's kernels for class centers in fp32, or loads them from its cache: .3 s of CPU time in a worker."""

import torch

from rayface.heads.row_kernels import RowPasses
from rayface.heads.row_passes import RowSgd

_rows, _which = torch.ones(1, 2), slice(0, 1)
# In one thread, as the fork server has: a process with more cannot be forked.
_passes = RowPasses(threads=1)
_passes.unit_rows(_rows, _which, torch.empty(1, 2))
_passes.sgd_rows(
    _rows, torch.zeros(1, 2), _which, torch.zeros(1, 2), RowSgd(lr=0.0, momentum=0.9, weight_decay=0.0, noise=None)
)
