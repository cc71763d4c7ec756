"""The registries of heads and margins."""

import pytest

from rayface.heads import HEADS, MARGINS, CosFace, HeadSettings, PartialFC, build_head, build_margin, head_class
from tests.heads.small_head import C, D


def test_build_head_of_a_known_name_builds_it_and_of_an_unknown_one_raises() -> None:
    settings = HeadSettings(embedding_size=D, num_classes=C, margin=CosFace())
    assert HEADS["partial_fc"] is PartialFC
    assert isinstance(build_head("partial_fc", settings), PartialFC)
    with pytest.raises(ValueError, match=r"head\.name 'fc' must be one of"):
        build_head("fc", settings)


def test_build_margin_of_a_known_name_passes_its_arguments() -> None:
    margin = build_margin("cosface", margin=0.3, scale=30.0)
    assert isinstance(margin, CosFace)
    assert (margin.m3, margin.scale) == (0.3, 30.0)


def test_build_margin_and_head_class_of_an_unknown_name_raise_one_line_that_lists_the_known() -> None:
    for call, words in (
        (lambda: build_margin("softmax"), "head.margin 'softmax' must be one of"),
        (lambda: head_class("softmax"), "head.name 'softmax' must be one of dcq, f2c, partial_fc"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_margins_by_name_are_built_without_arguments() -> None:
    assert all(build_margin(name).scale == 64 for name in MARGINS)
