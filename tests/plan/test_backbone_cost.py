"""Activations and parameters of backbones, against real forward passes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.config import with_overrides
from rayface.plan import backbone_cost
from rayface.plan.backbone_cost import NetSize, SavedBytes, net_size


@pytest.mark.parametrize(("name", "bf16"), [("mini", False), ("mini", True), ("vit_t", True)])
def test_activations_of_a_real_forward_equal_planned_bytes(small, name, bf16):
    width = {"mini": 0.5, "vit_t": 0.125}[name]
    size = net_size(with_overrides(small, {"backbone.name": name, "backbone.width": width}), bf16=bf16)
    net = build_backbone(name, embedding_size=64, image_size=32, width=width).train()
    counter = SavedBytes(net)
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        net(torch.zeros(6, 3, 32, 32))
    assert size.activation_bytes(6) == pytest.approx(counter.total, rel=0.01)


def test_num_parameters_of_a_preset_equal_the_built_net(small):
    size = net_size(small, bf16=False)
    net = build_backbone("mini", embedding_size=64, image_size=32, width=0.5)
    assert size.parameters == sum(p.numel() for p in net.parameters())
    assert size.parameters - size.trainable == 64  # the scale of the last normalisation


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Any) -> Iterator[Callable[[], list[str]]]:
    """A function that asks for the size of a new process, and returns which backbones were measured for it."""
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    calls: list[str] = []

    def call(function: Callable[..., NetSize], name: str, *arguments: Any, **options: Any) -> NetSize:
        calls.append(name)
        return function(name, *arguments, **options)

    monkeypatch.setattr(backbone_cost, "call", call)

    def ask() -> list[str]:
        calls.clear()
        backbone_cost._size_of_net.cache_clear()
        assert net_size(small, bf16=False).parameters > 10_000
        return list(calls)

    yield ask
    backbone_cost._size_of_net.cache_clear()


def test_size_of_a_net_is_kept_for_later_processes_until_the_code_changes(
    measured: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured() == ["mini"]
    assert measured() == []
    (kept,) = (tmp_path / "cache" / "backbones").iterdir()
    for broken in (b"", b"[]", b'{"parameters": 1}'):
        kept.write_bytes(broken)
        assert measured() == ["mini"]
        assert measured() == []
    monkeypatch.setattr(backbone_cost, "_code", lambda: "of another version")
    assert measured() == ["mini"]


def test_size_of_a_net_without_a_cache_that_can_be_written_is_measured(
    measured: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("")
    assert measured() == measured() == ["mini"]
