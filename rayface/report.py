"""Pictures of a training run, and a report of it that is one HTML file.

A figure is drawn once, in the colours of `PALETTE`: as PNG for folders and trackers, and as SVG inside the page,
where the colours become the page's own, so that it follows the reader's light or dark mode.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

import rayface
from rayface.credentials import mask
from rayface.files import write_file

Series = Sequence[tuple[int, float, float]]

# In the SVG each of these becomes the variable of that name in the page's style; no two may be equal.
PALETTE = {
    "surface": "#fffffe",
    "ink": "#1f2933",
    "muted": "#64707d",
    "grid": "#e4e8ec",
    "blue": "#2f66d0",
    "orange": "#c96a12",
    "green": "#14805e",
    "violet": "#7a4fc4",
}
PNG_DPI = 200
WIDE, HALF, TALL = (10.0, 3.6), (5.6, 3.4), (10.0, 7.2)  # inches
ROUND = [1, 2, 4, 5, 10]  # what ticks may be multiples of
MAX_POINTS = 1500  # a curve with more shows no more
SMOOTHING_WINDOW = 0.04  # of the points of a curve


@dataclass(frozen=True)
class Plot:
    """A figure with its name (that of its file) and what the page says of it."""

    name: str
    caption: str
    figure: Figure
    wide: bool = False


def training_report(
    run_dir: Path,
    *,
    title: str,
    metrics: Mapping[str, Series],
    table: Sequence[tuple[str, str]],
    roc: tuple[ArrayLike, ArrayLike] | None = None,
) -> Path:
    """Write `report.html`, which needs no other file, and the plots of `training_plots`.

    Args:
        run_dir: the run directory; its `config.yaml`, if there is one, is shown too.
        title: the heading.
        metrics: as `read_metrics` returns them; a name counts up to its last slash: `train/loss` is a loss.
        table: what to say first, (what, value).
        roc: FAR and TAR.

    Returns:
        the path of `report.html`.
    """
    plots = _draw(metrics, roc)
    write_pngs(run_dir, plots)
    config = run_dir / "config.yaml"
    page = load_template("report.html").render(
        title=title,
        table=table,
        plots=[{"caption": plot.caption, "wide": plot.wide, "svg": as_svg(plot)} for plot in plots],
        palette=PALETTE,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        version=rayface.__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return write_file(run_dir / "report.html", page.encode())


def training_plots(
    run_dir: Path, *, metrics: Mapping[str, Series], roc: tuple[ArrayLike, ArrayLike] | None = None
) -> dict[str, Path]:
    """Write `plots/NAME.png` in the run directory for what `metrics` and `roc` hold.

    Returns:
        the files by name: loss, accuracy, roc, schedule (of one that follows the loss), lr, throughput.
    """
    return write_pngs(run_dir, _draw(metrics, roc))


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred moving mean of (n,) values over 4 % of them, leaving out those that are not finite."""
    half = int(len(values) * SMOOTHING_WINDOW / 2)
    finite = np.isfinite(values)
    sums = np.append(0, np.where(finite, values, 0).cumsum())
    counts = np.append(0, finite.cumsum())
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def _draw(metrics: Mapping[str, Series], roc: tuple[ArrayLike, ArrayLike] | None) -> list[Plot]:
    """The plots in the order of the page; those without points are left out."""
    curves: dict[str, NDArray[np.float64]] = {}
    for name, points in metrics.items():
        if np.isfinite([value for _, value, _ in points]).any():
            curves.setdefault(name.rpartition("/")[2], np.array([point[:2] for point in points], np.float64).T)
    plots = []
    if (curve := curves.get("loss")) is not None:
        plots.append(Plot("loss", "Loss", _loss(*curve), wide=True))
    if (curve := curves.get("accuracy")) is not None:
        plots.append(Plot("accuracy", "Verification accuracy", _accuracy(*curve)))
    if roc is not None:
        plots.append(Plot("roc", "ROC at the last step", _roc(np.asarray(roc[0]), np.asarray(roc[1]))))
    if {"loss", "loss_mean", "detector", "threshold", "lr"} <= curves.keys():
        plots.append(Plot("schedule", "Loss, how fast it falls, learning rate", _schedule(curves), wide=True))
    if (curve := curves.get("lr")) is not None:
        plots.append(Plot("lr", "Learning rate", _lr(*curve)))
    if (curve := curves.get("images_per_second")) is not None:
        plots.append(Plot("throughput", "Throughput", _throughput(*curve)))
    return plots


def new_axes(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in inches, in the colours of the page, and its axes."""
    figure = Figure(figsize=size, facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    _style(axes, x, y)
    return figure, axes


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_facecolor(PALETTE["surface"])
    axes.grid(True, color=PALETTE["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["grid"])
    axes.tick_params(colors=PALETTE["muted"], labelsize=9, length=0, pad=5)
    axes.set_xlabel(x, color=PALETTE["muted"], fontsize=9)
    axes.set_ylabel(y, color=PALETTE["muted"], fontsize=9)


def _step_axes(size: tuple[float, float], y: str, steps: NDArray[np.float64]) -> tuple[Figure, Axes]:
    figure, axes = new_axes(size, "step", y)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    if steps[-1] > steps[0]:
        axes.set_xlim(steps[0], steps[-1])
    return figure, axes


def _loss(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(WIDE, "loss", steps)
    mean = smoothed(values)
    axes.plot(*_thinned(steps, values), color=PALETTE["blue"], alpha=0.4, linewidth=0.9, label="as logged")
    axes.plot(*_thinned(steps, mean), color=PALETTE["blue"], linewidth=2, label="moving mean")
    add_legend(axes)
    return figure


def _lr(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(HALF, "learning rate", steps)
    axes.plot(*_thinned(steps, values), color=PALETTE["orange"], linewidth=2)
    axes.set_ylim(bottom=0)
    return figure


def _schedule(curves: Mapping[str, NDArray[np.float64]]) -> Figure:
    """FastFace's view of a run, three panels over the same steps."""
    figure, first = _step_axes(TALL, "loss", curves["loss"][0])
    grid = figure.add_gridspec(3, hspace=0.06)
    first.set_subplotspec(grid[0])
    panels = [first, figure.add_subplot(grid[1], sharex=first), figure.add_subplot(grid[2], sharex=first)]
    for axes, name in zip(panels, ("loss", "E", "learning rate"), strict=True):
        _style(axes, "", name)
        axes.tick_params(labelbottom=axes is panels[-1])
    panels[-1].set_xlabel("step", color=PALETTE["muted"], fontsize=9)
    first.plot(*_thinned(*curves["loss"]), color=PALETTE["blue"], alpha=0.4, linewidth=0.9, label="as logged")
    first.plot(*_thinned(*curves["loss_mean"]), color=PALETTE["blue"], linewidth=2, label="its moving mean")
    panels[1].plot(*_thinned(*curves["detector"]), color=PALETTE["violet"], linewidth=1.5, label="E")
    threshold = float(curves["threshold"][1, -1])
    panels[1].axhline(
        threshold, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"threshold {threshold:.3g}"
    )
    panels[2].plot(*_thinned(*curves["lr"]), color=PALETTE["orange"], linewidth=2, drawstyle="steps-post")
    panels[2].set_yscale("log", base=2)
    panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    for axes in panels[:2]:
        add_legend(axes)
    return figure


def _throughput(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(HALF, "images / s", steps)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    middle = float(np.nanmedian(values))
    axes.plot(*_thinned(steps, values), color=PALETTE["violet"], alpha=0.75, linewidth=1.1, label="as logged")
    axes.axhline(
        middle, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"median {middle:,.0f}", zorder=3
    )
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def _accuracy(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Figure:
    figure, axes = _step_axes(HALF, "accuracy", steps)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    axes.plot(steps, values, color=PALETTE["green"], linewidth=2, marker="o", markersize=5, clip_on=False)
    axes.margins(y=0.18)
    axes.annotate(
        f"{values[-1]:.1%}",
        (steps[-1], values[-1]),
        (-4, 7),
        textcoords="offset points",
        ha="right",
        fontsize=10,
        fontweight="bold",
        color=PALETTE["green"],
    )
    return figure


def _roc(far: NDArray[np.float64], tar: NDArray[np.float64]) -> Figure:
    figure, axes = new_axes(HALF, "false acceptance rate", "true acceptance rate")
    lowest = float(far[far > 0].min(initial=1.0)) if (far < 1).any() else 0.1
    lowest = min(lowest, 0.1)
    axes.set_xscale("log")
    axes.set_xlim(lowest, 1)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    shown = np.maximum(far, lowest)  # no false acceptance at all has no place on a log axis
    axes.plot(shown, tar, color=PALETTE["blue"], linewidth=2, drawstyle="steps-post")
    for rate in (1e-1, 1e-2, 1e-3, 1e-4):
        if rate >= lowest:
            reached = float(tar[far <= rate].max(initial=0.0))
            axes.plot(rate, reached, "o", color=PALETTE["blue"], markersize=5)
            axes.annotate(
                f"{reached:.1%}",
                (rate, reached),
                (6, -12),
                textcoords="offset points",
                fontsize=9,
                color=PALETTE["ink"],
            )
    return figure


def add_legend(axes: Axes) -> None:
    """Add the legend of the curves that have a label."""
    axes.legend(frameon=False, fontsize=9, labelcolor=PALETTE["muted"], loc="best", ncols=2)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about MAX_POINTS of a curve, the last one always."""
    stride = max(1, len(x) // MAX_POINTS)
    places = np.append(np.arange(0, len(x) - 1, stride), len(x) - 1)
    return x[places], y[places]


def write_pngs(run_dir: Path, plots: Sequence[Plot]) -> dict[str, Path]:
    """Write `plots/NAME.png` for each plot; return the files by name."""
    folder = run_dir / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for plot in plots:
        picture = io.BytesIO()
        FigureCanvasAgg(plot.figure).print_figure(picture, format="png", dpi=PNG_DPI)
        files[plot.name] = write_file(folder / f"{plot.name}.png", picture.getvalue())
    return files


def as_svg(plot: Plot) -> Markup:
    """The figure as an SVG element whose text is text and whose colours are the page's."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        FigureCanvasSVG(plot.figure).print_figure(picture, format="svg", metadata={"Date": None})
    text = picture.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font: ([^;']*?)'[^\"]*?sans-serif", r"font: \1var(--font)", text)
    # ids are the same in every figure; those of clip paths must stay different
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{plot.name}-", text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{plot.caption}"', text, count=1)
    return Markup(text)  # ours: captions are constants, and matplotlib escapes the text in it


def load_template(name: str) -> jinja2.Template:
    """Return a page of `templates/`, in which credentials of texts are masked."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rayface"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: mask(value) if type(value) is str else value,
    )
    return environment.get_template(name)
