"""A GPU that is the CPU: tensors say that they are on "cuda" and refuse to be mixed with those that are not.

It shows without a GPU that code puts its tensors where they belong, and how often a step makes the host wait.
Arithmetic, memory and streams are the CPU's. Parameters of modules stay on the CPU, because nn.Module
replaces their data: where there are backbones, mixing cannot be refused.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from rayface.heads import prefetch

CUDA = torch.device("cuda", 0)
MEMORY = 2 * 10**9  # bytes that are always in use
_HOST_READS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "equal",
    "nonzero",
    "unique",
}
_BETWEEN = {
    "copy_",
    "to",
    "cpu",
    "__getitem__",
    "__setitem__",
    "__get__",
    "__set__",
    "backward",
    "as_subclass",
    "type_as",
}


class OnGpu(Tensor):
    """A tensor of the simulated GPU."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def record_stream(self, stream: object) -> None:
        """There is one stream."""


class GpuGenerator(torch.Generator):
    """torch.Generator of the simulated GPU."""

    device = property(lambda self: CUDA)

    def manual_seed(self, seed: int) -> GpuGenerator:
        super().manual_seed(seed)
        return self


class AnyGenerator(torch.Generator):
    """In place of torch.Generator: of the CPU or of the simulated GPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:  # type: ignore[misc]
        return GpuGenerator() if _is_cuda(device) else _CpuGenerator(device)


_CpuGenerator = torch.Generator


class Event:
    """torch.cuda.Event."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.time - self.time)


class InlineExecutor:
    """Runs work at once: modes of PyTorch are of one thread."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def on_gpu(value: Any) -> bool:
    return isinstance(value, OnGpu)


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.startswith("cuda")
    )


class SimulatedGpu(TorchFunctionMode):
    """Every call of PyTorch, with what it does to devices.

    Args:
        strict: refuse to mix devices.

    Attributes:
        waits: places of rayface that made the host wait, and how often.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        values = tree_leaves((args, kwargs))
        tensors = [value for value in values if isinstance(value, Tensor)]
        there = any(map(on_gpu, tensors))
        if name == "numpy" and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if there and self.strict and name not in _BETWEEN and any(t.dim() and not on_gpu(t) for t in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
        if there and name == "__getitem__" and not on_gpu(args[0]):
            raise RuntimeError("indices should be on the same device as the indexed tensor (cpu)")
        if name == "index_add_" and there and _repeats(args[2]):
            raise RuntimeError("a GPU adds rows of one place in any order: equal runs would differ")
        moved = self._target(name, args, kwargs, there)
        if there and (name in _HOST_READS or moved is False or _masked(name, args)):
            self._note()
        found = self._call(func, *tree_map(_unplaced, (args, kwargs)))
        if moved is not None and args and found is args[0]:
            found = found.clone()
        return tree_map(lambda value: _placed(value, there if moved is None else moved, args), found)

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def _target(self, name: str, args: Any, kwargs: Any, there: bool) -> bool | None:
        """Return whether the result is on the GPU by what the call asks for; None: it is where the arguments are."""
        if name == "cpu":
            return False if there else None
        if "device" in kwargs and kwargs["device"] is not None:
            asked = _is_cuda(kwargs["device"])
        elif name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            asked = on_gpu(args[1])
        elif name == "to" and len(args) > 1 and isinstance(args[1], str | torch.device):
            asked = _is_cuda(args[1])
        else:
            return None
        return None if asked == there and name == "to" else asked

    def _note(self) -> None:
        frame = sys._getframe(2)
        while frame is not None and f"{Path('rayface/heads')}" not in frame.f_code.co_filename:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            self.waits[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1


def _repeats(places: Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return len(torch.unique(places)) < len(places)


def _masked(name: str, args: Any) -> bool:
    """Whether a call indexes by a mask, whose size the host must know."""
    return name == "__getitem__" and any(isinstance(v, Tensor) and v.dtype == torch.bool for v in tree_leaves(args[1]))


def _unplaced(value: Any) -> Any:
    """Return an argument as the CPU takes it."""
    return "cpu" if _is_cuda(value) else value


def _placed(value: Any, there: bool, args: Any) -> Any:
    """Return a result as a tensor of the device that it is on; outputs and in-place results stay the same object."""
    if not isinstance(value, Tensor) or any(value is each for each in tree_leaves(args)):
        return value
    if there and not on_gpu(value):
        return value.as_subclass(OnGpu)
    if not there and on_gpu(value):
        return value.as_subclass(Tensor)
    return value


@contextlib.contextmanager
def simulated_gpu(*, strict: bool = True) -> Iterator[SimulatedGpu]:
    """Simulate a GPU inside the context."""
    stream = SimpleNamespace(device=CUDA, wait_stream=lambda other: None, synchronize=lambda: None)
    with pytest.MonkeyPatch.context() as patch, SimulatedGpu(strict) as gpu:
        patch.setattr(torch, "Generator", AnyGenerator)
        patch.setattr(prefetch, "ThreadPoolExecutor", InlineExecutor)
        patch.setattr(torch.cuda, "Stream", lambda device=None: stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.cuda, "Event", Event)
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"):
            patch.setattr(torch.cuda, name, lambda *_: None)
        for name in ("max_memory_allocated", "max_memory_reserved"):
            patch.setattr(torch.cuda, name, lambda *_: MEMORY)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, MEMORY))
        yield gpu
