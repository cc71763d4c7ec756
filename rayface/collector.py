"""Python's garbage collector in processes that import PyTorch and Ray."""

import gc

# By Python's own of 700, 10 and 10 an eighth of the CPU time of a short training, a sixth in its driver, goes into
# looking through the 450,000 objects that imports make and that stay.
_THRESHOLDS = (10_000, 10, 10)


def collect_less_often() -> None:
    """Have this process, and those forked from it, look for garbage a fourteenth as often."""
    gc.set_threshold(*_THRESHOLDS)
