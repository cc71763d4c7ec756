"""The floating-point type that a device computes in: train.precision resolved, autocast, and float32 without TF32."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]


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
def full_float32() -> Iterator[None]:
    """Forbid, inside the context and in all threads, what CUDA's libraries may do to float32: TF32, and rounded sums.

    By default convolutions of float32 round their factors to TF32 (10 bits), and so do products with
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, which NVIDIA's containers set; products of bfloat16 may round partial sums.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # The settings that PyTorch 2.7 has, too; to mix them with `fp32_precision` is an error.
    before = cudnn.allow_tf32, matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    cudnn.allow_tf32 = matmul.allow_tf32 = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
