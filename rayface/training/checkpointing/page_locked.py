"""Page-locked memory that other processes map too: a GPU copies into it while the host goes on."""

import contextlib
import weakref

import torch


def page_lock(memory: torch.Tensor, device: torch.device) -> bool:
    """Page-lock host memory for a GPU for as long as the tensor exists; return whether that succeeded.

    Without it copies are correct, but the host waits for each of them.
    """
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)):
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=device)  # takes the error, which CUDA would report to the next kernel
        return False
    release = weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr())
    release.atexit = False  # the process then ends, and its GPU's context before this
    return True
