"""The floating-point type that a device computes in."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rayface import precision
from rayface.precision import autocast, full_float32, uses_bf16

CPU = torch.device("cpu")
GPU = torch.device("cuda")


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


def in_use() -> tuple[bool, bool, bool]:
    """Return whether products and convolutions take TF32, and whether partial sums are rounded."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    reduced = matmul.allow_bf16_reduced_precision_reduction
    return matmul.fp32_precision == "tf32", conv.fp32_precision == "tf32", reduced


def older_names() -> list[object]:
    """Return what the older names of the settings say; "refused" where PyTorch raises."""

    def said(name: str) -> object:
        try:
            return eval(f"torch.{name}")
        except RuntimeError:
            return "refused"

    return [said(name) for name in OLDER_NAMES]


OLDER_NAMES = ("get_float32_matmul_precision()", "backends.cuda.matmul.allow_tf32", "backends.cudnn.allow_tf32")
OLDER = ("highest", "high", "medium")
SETTINGS = ("", "cudnn", "cuda.matmul", "cudnn.conv")


@pytest.fixture(params=["", *OLDER, *(f"{name}={value}" for name in SETTINGS for value in ("ieee", "tf32"))])
def set_before(request: pytest.FixtureRequest) -> Iterator[str]:
    """A program's own setting: none, of the older name, or of those that PyTorch has from 2.9 on."""
    name, is_newer, value = request.param.partition("=")
    setting: Any = functools.reduce(getattr, filter(None, name.split(".")), torch.backends) if is_newer else None
    if setting is not None:
        before = setting.fp32_precision
        setting.fp32_precision = value
    elif name:
        torch.set_float32_matmul_precision(name)
    yield name if setting is None else request.param
    if setting is not None:
        setting.fp32_precision = before
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # PyTorch's default, which inherits nothing
    elif name:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("is_old", [False, True])
def test_full_float32_on_a_gpu_forbids_tf32_and_rounded_sums_and_restores_the_settings(
    monkeypatch: pytest.MonkeyPatch, set_before: str, is_old: bool
) -> None:
    if is_old:  # PyTorch before 2.9, where a program can set only the older names
        if "=" in set_before:
            return
        monkeypatch.setattr(precision, "hasattr", lambda *given: False, raising=False)
    before, older_before = in_use(), older_names()
    with full_float32(GPU):
        assert in_use() == (False, False, False)
        assert older_names() == ["highest", False, False]
        with torch.backends.cudnn.flags(enabled=False):  # reads the older names
            pass
    assert in_use() == before
    assert older_names() == older_before
    if "=" not in set_before:
        assert older_before == [set_before or "highest", set_before in ("high", "medium"), True]


def test_full_float32_restores_settings_that_are_inherited() -> None:
    with full_float32(GPU):
        pass
    try:
        for value in ("tf32", "ieee"):
            torch.backends.fp32_precision = value
            assert torch.backends.cuda.matmul.fp32_precision == value
    finally:
        torch.backends.fp32_precision = "none"


def test_full_float32_of_overlapping_threads_restores_when_the_last_one_ends() -> None:
    before = in_use()
    first, second = full_float32(GPU), full_float32(GPU)
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        assert in_use() == (False, False, False)
    second.__exit__(None, None, None)
    assert in_use() == before


@pytest.mark.usefixtures("tf32_products")
def test_full_float32_on_a_cpu_changes_nothing() -> None:
    before = in_use()
    with full_float32(CPU):
        assert in_use() == before
