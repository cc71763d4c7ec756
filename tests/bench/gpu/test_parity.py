"""The comparison of devices finds what is wrong."""

from dataclasses import replace

import pytest
import torch

from rayface.bench.gpu import parity_backbones, parity_heads, parity_steps
from rayface.bench.gpu.case import Kit
from rayface.bench.gpu.errors import as_good, relative_error
from rayface.bench.gpu.parity import cases
from rayface.bench.gpu.parity_heads import MINI, HeadSetting, SameRows
from rayface.heads import MARGINS


def test_cases_of_parity_cover_margins_roads_and_backbones() -> None:
    names = [case.name for case in cases(Kit(device="cuda", mini=False))]
    assert len(set(names)) == len(names)
    for margin in MARGINS:
        assert sum(name.startswith(f"head {margin}, ") for name in names) == 4
    for words in ("host memory, prefetch", "fused, sampled", "bf16 storage", "backbone r100, bf16", "two steps, bf16"):
        assert any(words in name for name in names)


@pytest.mark.parametrize("name", ["fused, full", "fused, bf16 storage"])
def test_compare_of_a_fused_head_holds_it_to_float64(name: str) -> None:
    """Interpreted here; beside it stands the chunked head of the CPU."""
    found = parity_heads.compare(parity_heads.FUSED[name], replace(MINI, num_classes=60), "cpu")
    assert found.passed
    assert 0 < found.gradient < 0.03


@pytest.mark.parametrize("fault", ["gradient", "step", "rows"])
def test_compare_when_a_head_is_wrong_on_the_device_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is told from the CPU by a name that PyTorch takes for the CPU as well."""
    setting = HeadSetting(sample_rate=0.1)
    assert parity_heads.compare(setting, MINI, "cpu:0").passed
    whole = parity_heads.trace

    def broken(setting, sizes, device, **options):
        found = whole(setting, sizes, device, **options)
        if device == "cpu:0":
            found.__dict__[{"gradient": "gradients", "step": "moved", "rows": "losses"}[fault]].mul_(1.001)
        return found

    monkeypatch.setattr(parity_heads, "trace", broken)
    assert not parity_heads.compare(setting, MINI, "cpu:0").passed


def test_same_rows_when_drawn_for_another_device_are_those_of_the_cpu() -> None:
    head = SameRows(8, 100, parity_heads.build_margin("cosface"), sample_rate=0.2)
    targets = torch.tensor([3, 50])
    assert torch.equal(head.choose_rows(targets, (0, 0)), super(SameRows, head).choose_rows(targets, (0, 0)))


def test_repeat_when_a_run_differs_in_one_bit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = HeadSetting()
    assert parity_heads.repeat(setting, MINI, "cpu").passed
    once, noise = parity_heads.trace, iter([0.0, 1e-9])

    def noisy(*arguments):
        found = once(*arguments)
        return replace(found, moved=found.moved + next(noise))

    monkeypatch.setattr(parity_heads, "trace", noisy)
    assert not parity_heads.repeat(setting, MINI, "cpu").passed


def test_steps_and_backbones_on_one_device_agree() -> None:
    step = parity_steps.compare(replace(parity_steps.MINI, batch_size=4), "cpu")
    net = parity_backbones.compare(
        parity_backbones.NetSetting(net="mini", precision="fp32", image_size=16, embedding_size=8), "cpu"
    )
    assert step.passed
    assert step.backbone == step.cpu_backbone > 0
    assert net.passed
    assert net.gradient == net.cpu_gradient > 0


def test_as_good_takes_the_cpu_as_the_measure() -> None:
    ones = torch.ones(3)
    assert relative_error(ones * 1.5, ones) == pytest.approx(0.5)
    assert relative_error(ones * torch.nan, ones) == torch.inf
    assert as_good([1e-6], [0.0], floor=1e-5)
    assert as_good([0.3], [0.1], floor=1e-5)
    assert not as_good([0.5], [0.1], floor=1e-5)
    assert not as_good([1.0], [0.9], floor=1e-5)
