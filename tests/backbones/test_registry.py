"""build_backbone: names and values it refuses."""

import sys

import pytest

from rayface.backbones import BACKBONES, build_backbone


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone\.name 'r19' is not a known backbone; did you mean 'r18'"):
        build_backbone("r19")
    with pytest.raises(ValueError, match="known are mbf, mbf_large, mini"):
        build_backbone("????")


def test_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone\.chekpointing .* did you mean 'checkpointing'"):
        build_backbone("r18", chekpointing=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("embedding_size", 0), ("image_size", 8), ("width", 0.0), ("width", -1.0), ("dropout", 1.0)],
)
def test_values_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.{field} {value}"):
        build_backbone("mini", **{field: value})


def test_names_are_those_of_the_field() -> None:
    assert {"mini", "r18", "r34", "r50", "r100", "r200"} <= set(BACKBONES)


def test_nets_of_timm_need_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^backbone\.name: timm/resnet18: needs timm: pip install 'rayface\[timm\]'$"):
        build_backbone("timm/resnet18")
