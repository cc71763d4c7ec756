"""Resources of this machine that the process may use."""

import contextlib
import ctypes
import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

# Of glibc's mallopt, which refuses a larger M_MMAP_THRESHOLD. Other threads than the first one take memory in heaps of
# 64 MB; a free one is returned if the heap before it has more than the padding free, which no two heaps have.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 160 << 20}

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time in a period, and the period

# Both: with the first alone, PyTorch 2.13 hands out freed memory that is smaller than what is asked for
# (https://github.com/pytorch/pytorch/pull/192722).
_EXACT_SIZES = "pinned_max_round_threshold_mb:64,pinned_max_cached_size_mb:64"
_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def num_cpus() -> int:
    """Return the number of CPUs that this process may use; it can be lower than that of the machine.

    A container's limit counts: a process with more threads uses its time up early in each period, then stands still.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or "max": no limit
        limit, period = map(int, _CPU_LIMIT.read_text().split())
        cpus = max(1, min(cpus, limit // period))
    return cpus


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees; return whether its C library can (glibc can).

    A step or a forward pass on a CPU frees and takes hundreds of megabytes. glibc returns them to the kernel and takes
    them again page by page: 12,000 to 16,000 page faults of 1 to 2 us in each training step of the preset `mini`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return all(mallopt(option, value) for option, value in _KEPT.items())


def pin_exact_sizes() -> None:
    """Have PyTorch page-lock no more memory than it is asked for; call this before the process uses a GPU.

    It rounds up to a power of two: 38 GiB of class centers would take 64. Blocks above 64 MB are neither rounded nor
    kept when they are freed; smaller ones, such as the images of each step, are reused: page-locking waits for the
    GPU. Settings of the user are kept, and those of pinned memory are not touched.
    """
    # Earlier ones may not know the settings, and refuse what they do not know.
    if tuple(map(int, version("torch").split(".")[:2])) < (2, 13):
        return
    given = {name: os.environ[name] for name in _ALLOCATOR_SETTINGS if os.environ.get(name)}
    for name, value in (given or {_ALLOCATOR_SETTINGS[0]: ""}).items():
        if "pinned_max_" not in value:
            os.environ[name] = ",".join(filter(None, [value, _EXACT_SIZES]))


def release_gpu_memory() -> None:
    """Return the GPU memory that this process no longer uses, if it has used a GPU; PyTorch keeps it for itself."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()  # of modules in reference cycles
        torch.cuda.empty_cache()


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
