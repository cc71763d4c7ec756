"""What this process may use of the machine."""

import os


def num_cpus() -> int:
    """CPUs that this process may run on, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
