"""Figures of a training run's metrics over its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from rayface.report import HALF, PALETTE, TALL, WIDE, Plot, add_legend, new_axes, percent_ticks, style

Series = Sequence[tuple[int, float, float]]

ROUND = [1, 2, 4, 5, 10]  # steps of ticks, times a power of 10
MAX_POINTS = 1500  # curves are thinned to about this number of points
_HIGH = 0.9  # accuracy above which chance and the untrained model are not drawn
SMOOTHING_WINDOW = 0.04  # window of the moving mean, as a fraction of a curve's points


def draw_curves(
    metrics: Mapping[str, Series],
    evaluation: Sequence[Plot] = (),
    *,
    pair_set: str = "",
    chance: float | None = None,
) -> list[Plot]:
    """Draw the curves of `metrics`, in the order of a report; skip those without points, lr and throughput with one.

    Args:
        metrics: result of `read_metrics`; the prefix of a name is ignored: `train/loss` is the loss. Figures below
            another one, `eval/tar_at_far/1e-03`, are not drawn.
        evaluation: plots of the last validation, which follow the accuracy.
        pair_set: name of what the accuracy was measured on.
        chance: accuracy of guesses, drawn as a line unless the accuracy exceeds 90 %.
    """
    curves: dict[str, NDArray[np.float64]] = {}
    for name, points in metrics.items():
        if name.count("/") < 2 and np.isfinite([value for _, value, _ in points]).any():
            curves.setdefault(name.rpartition("/")[2], np.array([point[:2] for point in points], np.float64).T)
    plots = []
    if (curve := curves.get("loss")) is not None:
        plots.append(Plot("loss", "Loss", _loss(*curve), wide=True))
    if (curve := curves.get("accuracy")) is not None:
        plots.append(
            Plot("accuracy", f"Accuracy on {pair_set or 'the validation'}", _accuracy(curve[0], curve[1], chance))
        )
    plots += evaluation
    if {"loss", "loss_mean", "detector", "threshold", "lr"} <= curves.keys():
        plots.append(Plot("schedule", "Loss, how fast it falls, learning rate", _schedule(curves), wide=True))
    if (curve := curves.get("lr")) is not None and len(curve[0]) > 1:
        plots.append(Plot("lr", "Learning rate", _lr(*curve)))
    if (curve := curves.get("images_per_second")) is not None and len(curve[0]) > 1:
        plots.append(Plot("throughput", "Throughput", _throughput(*curve)))
    return plots


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving mean of (n,) values over 4 % of them, ignoring non-finite ones."""
    half = int(len(values) * SMOOTHING_WINDOW / 2)
    finite = np.isfinite(values)
    sums = np.append(0, np.where(finite, values, 0).cumsum())
    counts = np.append(0, finite.cumsum())
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def _step_axes(size: tuple[float, float], y: str, steps: NDArray[np.float64]) -> tuple[Figure, Axes]:
    figure, axes = new_axes(size, "step", y)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    if steps[-1] > steps[0]:
        axes.set_xlim(steps[0], steps[-1])
    else:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    return figure, axes


def _draw(axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], **line: Any) -> None:
    """Draw a curve, thinned; a single point, of a run shorter than train.log_every, as a dot."""
    axes.plot(*_thinned(steps, values), marker="o" if len(steps) == 1 else "", markersize=5, **line)


def _loss(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(WIDE, "loss", steps)
    mean = smoothed(values)
    if np.allclose(mean, values, equal_nan=True):  # of few points
        _draw(axes, steps, values, color=PALETTE["blue"], linewidth=2)
        return figure
    _draw(axes, steps, values, color=PALETTE["blue"], alpha=0.4, linewidth=0.9, label="as logged")
    _draw(axes, steps, mean, color=PALETTE["blue"], linewidth=2, label="moving mean")
    add_legend(axes)
    return figure


def _lr(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(HALF, "learning rate", steps)
    _draw(axes, steps, values, color=PALETTE["orange"], linewidth=2)
    axes.set_ylim(bottom=0)
    return figure


def _schedule(curves: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw FastFace's detector: three panels over the same steps."""
    figure, first = _step_axes(TALL, "loss", curves["loss"][0])
    grid = figure.add_gridspec(3, hspace=0.06)
    first.set_subplotspec(grid[0])
    panels = [first, figure.add_subplot(grid[1], sharex=first), figure.add_subplot(grid[2], sharex=first)]
    for axes, name in zip(panels, ("loss", "E", "learning rate"), strict=True):
        style(axes, "", name)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("step", color=PALETTE["muted"], fontsize=9)
    _draw(first, *curves["loss"], color=PALETTE["blue"], alpha=0.4, linewidth=0.9, label="as logged")
    _draw(first, *curves["loss_mean"], color=PALETTE["blue"], linewidth=2, label="its moving mean")
    _draw(panels[1], *curves["detector"], color=PALETTE["violet"], linewidth=1.5, label="E")
    threshold = float(curves["threshold"][1, -1])
    panels[1].axhline(
        threshold, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.3g}"
    )
    _draw(panels[2], *curves["lr"], color=PALETTE["orange"], linewidth=2, drawstyle="steps-post")
    panels[2].set_yscale("log", base=2)
    panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    for axes in panels[:2]:
        add_legend(axes)
    return figure


def _throughput(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(HALF, "images / s", steps)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    middle = float(np.nanmedian(values))
    _draw(axes, steps, values, color=PALETTE["violet"], alpha=0.75, linewidth=1.1, label="as logged")
    axes.axhline(
        middle, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"median {middle:,.0f}", zorder=3
    )
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def _accuracy(steps: NDArray[np.float64], values: NDArray[np.float64], chance: float | None) -> Figure:
    if np.nanmax(values) > _HIGH and (trained := steps > 0).any():  # else 50 to 100 % hides every difference
        steps, values, chance = steps[trained], values[trained], None
    figure, axes = _step_axes(HALF, "accuracy", steps)
    percent_ticks(axes.yaxis)
    axes.plot(steps, values, color=PALETTE["green"], linewidth=2, marker="o", markersize=5, clip_on=False)
    if chance is not None:
        label = f"chance {chance:.0%}"
        axes.axhline(chance, color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)), label=label)
        add_legend(axes)
    axes.margins(y=0.18)
    axes.annotate(
        f"{values[-1]:.2%}",
        (steps[-1], values[-1]),
        (-4, 7),
        textcoords="offset points",
        ha="right",
        fontsize=10,
        fontweight="bold",
        color=PALETTE["green"],
    )
    return figure


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return about MAX_POINTS points of a curve, including the last one."""
    stride = max(1, len(x) // MAX_POINTS)
    places = np.append(np.arange(0, len(x) - 1, stride), len(x) - 1)
    return x[places], y[places]
