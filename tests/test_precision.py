"""The floating-point type that a device computes in."""

import pytest
import torch

from rayface import precision
from rayface.precision import autocast, full_float32, uses_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_uses_bf16_for_auto_follows_the_device_and_a_named_type_does_not(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    assert uses_bf16("auto", CPU) is fast
    assert uses_bf16("bf16", CPU) is True
    assert uses_bf16("fp32", CPU) is False


def test_fast_bf16_of_a_device_without_kernels_is_false() -> None:
    assert precision.fast_bf16(torch.device("meta")) is False
    assert precision.fast_bf16(CPU) in (True, False)


@pytest.mark.parametrize(
    ("machine", "instructions", "library", "fast"),
    [
        ("x86_64", True, True, True),
        ("x86_64", False, True, False),  # AVX-512 without bf16: oneDNN emulates it
        ("AMD64", False, True, False),
        ("aarch64", False, True, True),
        ("aarch64", False, False, False),
    ],
)
def test_fast_bf16_of_a_cpu_needs_the_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, instructions: bool, library: bool, fast: bool
) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: library)
    assert precision.fast_bf16(CPU) is fast


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_changes_the_type_of_products_only_for_bf16(bf16: bool, dtype: torch.dtype) -> None:
    matrix = torch.ones(2, 2)
    with autocast(CPU, bf16):
        assert (matrix @ matrix).dtype == dtype
    assert (matrix @ matrix).dtype == torch.float32


@pytest.mark.usefixtures("tf32_products")
def test_full_float32_forbids_tf32_and_rounded_sums_and_restores_the_settings() -> None:
    def allowed() -> tuple[bool, bool, bool]:
        matmul = torch.backends.cuda.matmul
        return torch.backends.cudnn.allow_tf32, matmul.allow_tf32, matmul.allow_bf16_reduced_precision_reduction

    assert allowed() == (True, True, True)
    with full_float32():
        assert allowed() == (False, False, False)
    assert allowed() == (True, True, True)
