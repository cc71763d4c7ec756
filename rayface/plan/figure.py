"""Figure of a plan: memory and speed against the number of classes."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, StrMethodFormatter

from rayface.plan.memory import Job, memory
from rayface.plan.planning import Plan
from rayface.plan.preflight import GB
from rayface.plan.timing import step_seconds, step_total
from rayface.report import PALETTE, PNG_DPI

POINTS = 97
SMALLEST, LARGEST = 10_000, 100_000_000  # range of the class axis, extended to the plan's own number if needed


def draw_plan(plan: Plan, path: Path) -> Path:
    """Write a PNG with a worker's memory and images/s over C, with the plan's own C marked.

    Raises:
        ValueError: the name does not end in .png.
    """
    if path.suffix != ".png":
        raise ValueError(f"plot: {path}: must end in .png")
    ends = min(SMALLEST, plan.job.num_classes), max(LARGEST, plan.job.num_classes)
    classes = np.geomspace(*ends, POINTS).astype(int)
    jobs = [plan.with_classes(int(count)) for count in classes]
    figure = Figure(figsize=(10.0, 3.9), facecolor=PALETTE["surface"], layout="constrained")
    left, right = figure.subplots(1, 2)
    _memory(left, plan, jobs)
    _style(left, "memory of a worker, GB")
    speed = [job.batch_size / step_total(step_seconds(job, plan.rates)) for job in jobs]
    right.plot(classes, speed, color=PALETTE["violet"], linewidth=2)
    _mark(right, plan.job.num_classes, plan.images_per_second, f"{plan.images_per_second:,.0f}", "violet")
    right.set_ylim(bottom=0)
    _style(right, "images / s, all workers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=PNG_DPI)
    return path


def _memory(axes: Axes, plan: Plan, jobs: list[Job]) -> None:
    classes = [job.num_classes for job in jobs]
    ours, dense = ([sum(memory(job, kind).values()) / GB for job in jobs] for kind in ("chunked", "dense"))
    axes.plot(classes, dense, color=PALETTE["orange"], linewidth=1.6, label="dense gradient, full logits")
    axes.plot(classes, ours, color=PALETTE["blue"], linewidth=2, label="rayface")
    total = sum(plan.memory.values()) / GB
    _mark(axes, plan.job.num_classes, total, f"{total:,.1f} GB", "blue")
    top = max(ours)
    if plan.memory_per_device is not None:
        limit = plan.memory_per_device / GB
        axes.axhline(limit, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"{limit:,.0f} GB")
        top = max(2 * limit, total)
    axes.set_ylim(0, 1.1 * top)
    axes.legend(frameon=False, fontsize=9, labelcolor=PALETTE["muted"], loc="upper left")


def _mark(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.plot(x, y, "o", color=PALETTE[colour], markersize=6)
    axes.annotate(text, (x, y), (-8, -15), textcoords="offset points", ha="right", fontsize=9, color=PALETTE["ink"])


def _style(axes: Axes, label: str) -> None:
    axes.set_facecolor(PALETTE["surface"])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(True, color=PALETTE["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["grid"])
    axes.tick_params(colors=PALETTE["muted"], labelsize=9, length=0, pad=5)
    axes.set_xlabel("classes", color=PALETTE["muted"], fontsize=9)
    axes.set_ylabel(label, color=PALETTE["muted"], fontsize=9)


def _short(count: float) -> str:
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k" if count >= 1e3 else f"{count:g}"
