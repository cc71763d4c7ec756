"""The floating-point type that a device computes in: train.precision resolved, autocast, and float32 without TF32."""

import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]

_lock = threading.Lock()
_entered: list[Callable[[], None]] = []  # one restoring function, once per context of `full_float32` that is open


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether train.precision means bf16 autocast on a device; "auto" does where bf16 is the faster type."""
    return precision == "bf16" or (precision == "auto" and fast_bf16(device))


def fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than fp32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN "supports" bf16 on every CPU with AVX-512, but without the instructions it takes 2 to 5 times as long
        # as fp32. CPUs with AMX have them, too.
        return torch.cpu._is_avx512_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Return a bf16 autocast context, or one that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Forbid, inside the context and in all threads, what CUDA's libraries may do to float32: TF32, and rounded sums.

    By default convolutions of float32 round their factors to TF32 (10 bits), and so do products with
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which NVIDIA's containers set; products of bfloat16 may round partial sums.

    On other devices it does nothing. Contexts may overlap in threads: the last one to end restores the settings.
    """
    if device.type != "cuda":
        yield
        return
    with _lock:
        _entered.append(_entered[0] if _entered else _forbid_tf32())
    try:
        yield
    finally:
        with _lock:
            restore = _entered.pop()
            if not _entered:
                restore()


def _forbid_tf32() -> Callable[[], None]:
    """Forbid TF32 and rounded sums; return the function that restores the settings."""
    cudnn: Any = torch.backends.cudnn  # its types lack `conv`
    mkldnn: Any = torch.backends.mkldnn
    matmul, undo = torch.backends.cuda.matmul, ExitStack()
    if matmul.allow_bf16_reduced_precision_reduction:
        undo.callback(setattr, matmul, "allow_bf16_reduced_precision_reduction", True)
        matmul.allow_bf16_reduced_precision_reduction = False
    if hasattr(matmul, "fp32_precision"):  # PyTorch 2.9
        # The first belongs to the older name of `matmul`; the second is that of all CUDA, which the others may inherit.
        settings = (mkldnn.matmul, cudnn, matmul, cudnn.conv, cudnn.rnn)
        before = [setting.fp32_precision for setting in settings]
        cudnn.fp32_precision = "ieee"
        own = [setting.fp32_precision != "ieee" for setting in settings[2:]]
        undo.callback(_restore, settings, before, (False, False, *own))
        for setting in settings:
            setting.fp32_precision = "ieee"
    # The older names, too: PyTorch raises in code that reads one that says otherwise than the newer ones.
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    undo.callback(setattr, cudnn, "allow_tf32", _allows_tf32(cudnn))
    cudnn.allow_tf32 = False
    return undo.close


def _allows_tf32(cudnn: Any) -> bool:
    try:
        return bool(cudnn.allow_tf32)
    except RuntimeError:  # it says otherwise than the newer names, which now forbid it
        return True


def _restore(settings: Sequence[Any], precisions: Sequence[str], own: Sequence[bool]) -> None:
    """Restore settings; `own`: one that does not inherit, even if it would inherit the same."""
    for setting, precision, keeps in zip(settings, precisions, own, strict=True):
        setting.fp32_precision = "none"  # inherits, and reads as what it inherits
        if keeps or setting.fp32_precision != precision:
            setting.fp32_precision = precision
