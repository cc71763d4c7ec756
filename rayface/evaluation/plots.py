"""Plots of an evaluation, drawn from the content of evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from rayface.report import HALF, PALETTE, Plot, add_legend, label_bars, new_axes, percent_ticks, plain

_HALF = 0.5  # a rate on whose sides a curve has room for its labels
_HIGH = 0.8  # TAR from which the axis of a ROC begins near the lowest one


def evaluation_plots(content: Mapping[str, Any], when: str = "") -> list[Plot]:
    """Draw ROC, DET, histogram of scores, and rates by group, of every protocol that has them.

    Args:
        content: content of evaluation.json; the plots of the first protocol are named roc, det, scores, discard,
            groups-COLUMN, those of others NAME-roc, ...
        when: added to the captions, for example "at the last step".
    """
    plots: list[Plot] = []
    figures, curves = content.get("protocols", {}), content.get("curves", {})
    if not curves and "roc" in content:  # of an older run
        figures, curves = {"pairs": content}, {"pairs": {"roc": content["roc"]}}
    for number, (protocol, own) in enumerate(curves.items()):
        prefix = f"{protocol}-" if number else ""
        name = " ".join(part for part in (own.get("name", protocol), when) if part)
        measured = figures.get(protocol, {})
        tars = measured.get("tar_at_far", {})
        if "roc" in own:
            far, tar = (np.array(own["roc"][key], np.float64) for key in ("far", "tar"))
            plots.append(Plot(f"{prefix}roc", f"ROC of {name}", draw_roc(far, tar, tars)))
            if (rejected := _det(far, tar, tars, _num_genuine(measured, own))) is not None:
                plots.append(Plot(f"{prefix}det", f"DET of {name}", rejected))
        if "histogram" in own:
            plots.append(Plot(f"{prefix}scores", f"Scores of {name}", _histogram(own["histogram"], measured)))
        if "error_versus_discard" in own:
            plots.append(Plot(f"{prefix}discard", f"Errors of {name} without the worst images", _discard(own)))
        for column, groups in measured.get("groups", {}).items():
            if (bars := _bars(groups)) is not None:
                lowest, drawn = bars
                plots.append(Plot(f"{prefix}groups-{column}", f"TAR at FAR {lowest} of {name} by {column}", drawn))
    return plots


def draw_roc(far: NDArray[np.float64], tar: NDArray[np.float64], tars: Mapping[str, float | None]) -> Figure:
    """Draw a ROC curve.

    Args:
        far, tar: (n,) points of the curve.
        tars: TAR by rate, such as 1e-03: the points that are labelled.
    """
    figure, axes = new_axes(HALF, "false acceptance rate", "true acceptance rate")
    lowest = _far_axis(axes, far)
    marks = _marks(tars, lowest)
    least = min([*tar[far > 0].tolist(), *(reached for _, reached in marks)], default=0.0)
    bottom = 0.0 if least < _HIGH else 1 - 1.5 * max(1 - least, 0.01)
    axes.set_ylim(bottom, 1 + 0.03 * (1 - bottom))
    percent_ticks(axes.yaxis)
    if not bottom:
        _chance(axes, lowest, lambda far: far)
    shown = np.maximum(far, lowest)  # a FAR of 0 cannot be drawn on a log axis
    axes.plot(shown, tar, color=PALETTE["blue"], linewidth=2, drawstyle="steps-post")
    for rate, reached in marks:
        axes.plot(rate, reached, "o", color=PALETTE["blue"], markersize=5)
        _label(axes, _percent(reached), (rate, reached), _roc_offset(rate > lowest, reached))
    return figure


def _roc_offset(inside: bool, reached: float) -> tuple[int, int]:
    """Return where a TAR is written: left of its point and above, unless that is outside; right and below, or above."""
    if reached >= _HALF:
        return 6, -12
    return (-4, 5) if inside else (6, 5)


def _num_genuine(figures: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Return the number of genuine pairs of a protocol; 0 if it is unknown."""
    return int(figures.get("num_genuine") or sum(own.get("histogram", {}).get("genuine", [])))


def _det(
    far: NDArray[np.float64], tar: NDArray[np.float64], tars: Mapping[str, float | None], num_genuine: int
) -> Figure | None:
    """Draw the detection error trade-off: false rejection rate over FAR, both logarithmic.

    A rate of 0 is drawn at half of the lowest rate that `num_genuine` pairs resolve; None if both are unknown.
    """
    rejected = 1 - tar
    resolved = 1 / num_genuine if num_genuine else float(rejected[rejected > 0].min(initial=1.0))
    if resolved == 1:
        return None
    figure, axes = new_axes(HALF, "false acceptance rate", "false rejection rate")
    lowest, floor = _far_axis(axes, far), resolved / 2
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.6, 1.3)
    percent_ticks(axes.yaxis)
    axes.minorticks_off()
    _chance(axes, lowest, lambda far: 1 - far)
    shown = np.maximum(far, lowest), np.maximum(rejected, floor)
    axes.plot(*shown, color=PALETTE["violet"], linewidth=2, drawstyle="steps-post")
    for rate, reached in _marks(tars, lowest):
        place = (rate, max(1 - reached, floor))
        axes.plot(*place, "o", color=PALETTE["violet"], markersize=5)
        _label(axes, _percent(1 - reached), place, _det_offset(rate > lowest, reached))
    return figure


def _det_offset(inside: bool, reached: float) -> tuple[int, int]:
    """Return where a false rejection rate is written: left of its point and below, unless that is outside."""
    if inside and reached < 1:
        return -4, -12
    return (6, 5) if reached >= _HALF else (6, -12)


def _percent(share: float) -> str:
    """Return a share in percent, with two digits that differ from 0 or 100 %."""
    if share < 0.01:
        return f"{100 * share:.2g}%"
    if share <= 0.99 or share >= 1:
        return f"{share:.1%}"
    digits = 1 - math.floor(math.log10(100 * (1 - share)))
    return f"{share:.{max(1, digits)}%}"


def _chance(axes: Axes, lowest: float, of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    """Draw the rates of guesses over FAR, and a legend that says so."""
    grid = np.geomspace(lowest, 0.999, 100)
    axes.plot(grid, of(grid), color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
    add_legend(axes)


def _far_axis(axes: Axes, far: NDArray[np.float64]) -> float:
    """Make the x axis logarithmic, from the lowest rate of the curve to 1; return the lowest."""
    lowest = min(0.1, float(far[far > 0].min(initial=1.0)) if (far < 1).any() else 0.1)
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    return lowest


def _marks(tars: Mapping[str, float | None], lowest: float) -> list[tuple[float, float]]:
    return [(float(far), tar) for far, tar in tars.items() if tar is not None and float(far) >= lowest]


def _label(axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int]) -> None:
    """Write a point's value beside it, `offset` points away, where the curve is not."""
    side = "left" if offset[0] > 0 else "right"
    axes.annotate(text, place, offset, textcoords="offset points", ha=side, fontsize=9, color=PALETTE["ink"])


def _histogram(counts: Mapping[str, ArrayLike], figures: Mapping[str, Any]) -> Figure:
    """Draw the shares of the scores; all-vs-all counts those of a sample, so the legend has the figures' numbers."""
    figure, axes = new_axes(HALF, "cosine of two images", "share of the pairs")
    edges = np.asarray(counts["edges"], np.float64)
    for kind, colour in (("genuine", "green"), ("impostor", "orange")):
        values = np.asarray(counts[kind], np.float64)
        shares = values / max(1, values.sum())
        label = f"{kind}: {figures.get(f'num_{kind}', values.sum()):,.0f}"
        axes.stairs(shares, edges, fill=True, color=PALETTE[colour], alpha=0.35, label=label)
        axes.stairs(shares, edges, color=PALETTE[colour], linewidth=1.6)
    percent_ticks(axes.yaxis)
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend
    add_legend(axes)
    return figure


def _discard(curves: Mapping[str, Any]) -> Figure:
    """Draw the errors of the pairs that remain when those with the shortest embeddings are rejected."""
    own = curves["error_versus_discard"]
    figure, axes = new_axes(HALF, "rejected pairs, by the norm of their embeddings", "error rate")
    rejected = np.array(own["rejected"], np.float64)
    for key, text, colour in (
        ("fnmr", f"false rejections at FAR {own['far']:g}", "violet"),
        ("error", "errors", "orange"),
    ):
        values = np.array([np.nan if value is None else value for value in own[key]])
        axes.plot(rejected, values, color=PALETTE[colour], linewidth=2, marker="o", markersize=4, label=text)
    percent_ticks(axes.xaxis)
    percent_ticks(axes.yaxis)
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def _bars(groups: Mapping[str, Mapping[str, Any]]) -> tuple[str, Figure] | None:
    """Draw the TAR of each group at the lowest FAR that all groups resolve; None if there is none."""
    rates = {name: own["tar_at_far"] for name, own in groups.items()}
    common = [far for far in next(iter(rates.values()), {}) if all(own.get(far) is not None for own in rates.values())]
    if not common:
        return None
    lowest = min(common, key=float)
    figure, axes = new_axes(HALF, "", "true acceptance rate")
    values = [own[lowest] for own in rates.values()]
    axes.bar(range(len(values)), values, color=PALETTE["blue"], width=0.6)
    axes.set_xticks(range(len(values)), list(map(plain, rates)), rotation=30 if len(values) > 5 else 0)
    axes.set_ylim(0, 1.1)
    percent_ticks(axes.yaxis)
    label_bars(axes, values, "{:.1%}")
    return lowest, figure
