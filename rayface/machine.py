"""Resources of this machine that the process may use."""

import ctypes
import os

# Of glibc's mallopt; it refuses a larger threshold.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 32 * 2**20


def num_cpus() -> int:
    """Return the number of CPUs that this process may run on; it can be lower than that of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees; return whether its C library can (glibc can).

    A training step on a CPU frees and takes hundreds of megabytes. glibc returns them to the kernel and takes them
    again page by page: 12,000 page faults of 1 to 2 us in each step of the preset `mini`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def end_without_exit_handlers() -> bool:
    """Have this process end without those that libraries in C and C++ have registered; return whether it can (glibc).

    Python's own still run, before.
    """
    try:
        libc = ctypes.CDLL(None)
        # It runs before what was registered before it, with the exit status as its first argument.
        return not libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    except (AttributeError, OSError):  # not glibc
        return False
