"""Resources of this machine that the process may use."""

import os


def num_cpus() -> int:
    """Return the number of CPUs that this process may run on; it can be lower than that of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
