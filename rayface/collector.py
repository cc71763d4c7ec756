"""Python's garbage collector in processes that import PyTorch and Ray."""

import gc

# By Python's own thresholds of 700, 10 and 10 a sixth of the CPU time to the end of a short training goes into looking
# through some 450,000 objects that imports have made, and that stay.
_THRESHOLDS = (10_000, 10, 10)


def collect_less_often() -> None:
    """Have this process, and those forked from it, look for garbage a fourteenth as often."""
    gc.set_threshold(*_THRESHOLDS)
