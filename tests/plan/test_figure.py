"""Figure of a plan: what it marks, and names that are no PNG."""

from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from rayface.config import Config
from rayface.plan.figure import draw_plan
from rayface.plan.planning import make_plan


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written from now on."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k))
    return figures


def test_draw_plan_without_a_limit_writes_a_png_with_the_mark_of_the_plan(
    small: Config, tmp_path: Path, drawn: list[Figure]
) -> None:
    plan = make_plan(small, num_classes=50_000, num_images=1_000_000)
    path = draw_plan(plan, tmp_path / "plots" / "plan.png")
    assert cv2.imread(str(path)).std() > 5
    memory, speed = drawn[0].axes
    assert [line.get_label() for line in memory.get_lines()[:2]] == ["dense gradient, full logits", "rayface"]
    assert memory.get_xlim()[0] < 10_000
    assert memory.get_xlim()[1] > 100_000_000
    for axes in (memory, speed):
        (mark,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert mark.get_xdata()[0] == 50_000
    assert speed.texts[0].get_text() == f"{plan.images_per_second:,.0f}"


def test_draw_plan_with_a_memory_limit_draws_it_in_range(small: Config, tmp_path: Path, drawn: list[Figure]) -> None:
    plan = replace(make_plan(small, num_classes=50_000, num_images=1_000_000), memory_per_device=16 * 2**30)
    draw_plan(plan, tmp_path / "plan.png")
    memory = drawn[0].axes[0]
    limits = [line for line in memory.get_lines() if str(line.get_label()).endswith(" GB")]
    assert len(limits) == 1
    assert limits[0].get_ydata()[0] < memory.get_ylim()[1]


def test_draw_plan_of_few_classes_begins_the_axis_at_them(small: Config, tmp_path: Path, drawn: list[Figure]) -> None:
    draw_plan(make_plan(small, num_classes=20, num_images=1000), tmp_path / "plan.png")
    assert [line.get_xdata()[0] for line in drawn[0].axes[0].get_lines()[:2]] == [20, 20]


def test_draw_plan_into_another_format_raises_one_line(small: Config, tmp_path: Path) -> None:
    plan = make_plan(small, num_classes=20, num_images=1000)
    with pytest.raises(ValueError, match=r"^plot: .*plan\.pdf: must end in \.png$"):
        draw_plan(plan, tmp_path / "plan.pdf")
    assert list(tmp_path.iterdir()) == []
