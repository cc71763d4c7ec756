"""Plots of an evaluation, drawn from the content of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from rayface.report import HALF, PALETTE, Plot, add_legend, label_bars, new_axes, plain


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
        tars = figures.get(protocol, {}).get("tar_at_far", {})
        if "roc" in own:
            far, tar = (np.array(own["roc"][key], np.float64) for key in ("far", "tar"))
            plots.append(Plot(f"{prefix}roc", f"ROC of {name}", draw_roc(far, tar, tars)))
            plots.append(Plot(f"{prefix}det", f"DET of {name}", _det(far, tar, tars)))
        if "histogram" in own:
            plots.append(Plot(f"{prefix}scores", f"Scores of {name}", _histogram(own["histogram"])))
        if "error_versus_discard" in own:
            plots.append(Plot(f"{prefix}discard", f"Errors of {name} without the worst images", _discard(own)))
        for column, groups in figures.get(protocol, {}).get("groups", {}).items():
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
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    grid = np.geomspace(lowest, 1, 100)
    axes.plot(grid, grid, color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
    shown = np.maximum(far, lowest)  # a FAR of 0 cannot be drawn on a log axis
    axes.plot(shown, tar, color=PALETTE["blue"], linewidth=2, drawstyle="steps-post")
    for rate, reached in _marks(tars, lowest):
        axes.plot(rate, reached, "o", color=PALETTE["blue"], markersize=5)
        _label(axes, f"{reached:.1%}", (rate, reached), _roc_offset(rate > lowest, reached))
    add_legend(axes)
    return figure


def _roc_offset(inside: bool, reached: float) -> tuple[int, int]:
    """Return where a TAR is written: left of its point and above, unless that is outside; right and below, or above."""
    if reached >= 0.5:
        return 6, -12
    return (-4, 5) if inside else (6, 5)


def _det(far: NDArray[np.float64], tar: NDArray[np.float64], tars: Mapping[str, float | None]) -> Figure:
    """Draw the detection error trade-off: false rejection rate over FAR, both logarithmic."""
    figure, axes = new_axes(HALF, "false acceptance rate", "false rejection rate")
    lowest = _far_axis(axes, far)
    rejected = 1 - tar
    floor = min(0.1, float(rejected[rejected > 0].min(initial=1.0)))
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.3, 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.minorticks_off()
    grid = np.geomspace(lowest, 0.999, 100)
    axes.plot(grid, 1 - grid, color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)), label="chance")
    shown = np.maximum(far, lowest), np.maximum(rejected, floor)
    axes.plot(*shown, color=PALETTE["violet"], linewidth=2, drawstyle="steps-post")
    for rate, reached in _marks(tars, lowest):
        axes.plot(rate, max(1 - reached, floor), "o", color=PALETTE["violet"], markersize=5)
        place = (rate, max(1 - reached, floor))
        _label(axes, f"{1 - reached:.1%}", place, (-4, -12) if reached < 0.5 and rate > lowest else (6, -12))
    add_legend(axes)
    return figure


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


def _histogram(counts: Mapping[str, ArrayLike]) -> Figure:
    figure, axes = new_axes(HALF, "cosine of two images", "share of the pairs")
    edges = np.asarray(counts["edges"], np.float64)
    for kind, colour in (("genuine", "green"), ("impostor", "orange")):
        values = np.asarray(counts[kind], np.float64)
        shares = values / max(1, values.sum())
        axes.stairs(shares, edges, fill=True, color=PALETTE[colour], alpha=0.35, label=f"{kind}: {values.sum():,.0f}")
        axes.stairs(shares, edges, color=PALETTE[colour], linewidth=1.6)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
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
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.1%}"))
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
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    label_bars(axes, values, "{:.1%}")
    return lowest, figure
