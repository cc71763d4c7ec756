"""Figures, and self-contained HTML pages that embed them.

A figure uses the colours of `PALETTE`. It is written as PNG for folders and trackers, and embedded in a page as SVG,
with its colours replaced by CSS variables, so that it follows the reader's light or dark mode.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rayface.credentials import mask
from rayface.files import write_file
from rayface.values import visible

# In the SVG each colour becomes the CSS variable of that name; no two may be equal.
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


@dataclass(frozen=True)
class Plot:
    """A figure with its caption; characters of `name` that a file name or an HTML id must not hold are replaced."""

    name: str
    caption: str
    figure: Figure
    wide: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", re.sub(r"[^\w .+-]", "_", self.name))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A table with a heading."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(kw_only=True)
class Face:
    """An image with a caption; kind is "kept", "dropped" or "" and decides the colour."""

    key: str
    caption: str = ""
    kind: str = ""
    jpeg: str = ""  # base64; empty if it could not be read


@dataclass(frozen=True, kw_only=True)
class Row:
    """Groups of images under one line of text."""

    who: str
    groups: list[list[Face]]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows of images with a heading."""

    title: str
    caption: str
    rows: list[Row]


def new_axes(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in inches, in the page's colours, and its axes."""
    figure = Figure(figsize=size, facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    style(axes, x, y)
    return figure, axes


def style(axes: Axes, x: str, y: str) -> None:
    """Style axes in the page's colours."""
    axes.set_facecolor(PALETTE["surface"])
    axes.grid(True, color=PALETTE["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE["grid"])
    axes.tick_params(colors=PALETTE["muted"], labelsize=9, length=0, pad=5)
    axes.set_xlabel(x, color=PALETTE["muted"], fontsize=9)
    axes.set_ylabel(y, color=PALETTE["muted"], fontsize=9)


def percent_ticks(axis: Axis) -> None:
    """Label the ticks of an axis of shares in percent, each with as many digits as it has."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def add_legend(axes: Axes) -> None:
    """Add a legend of all labelled curves."""
    axes.legend(frameon=False, fontsize=9, labelcolor=PALETTE["muted"], loc="best", ncols=2)


def plain(text: str) -> str:
    """Return text of data for a figure: Matplotlib takes what is between dollar signs as TeX, and may refuse it."""
    return text.replace("$", r"\$")


def label_bars(axes: Axes, values: Sequence[float], form: str) -> None:
    """Write each value above its bar, the bars being at 0, 1, ...; `form` is a format such as "{:.1%}"."""
    for place, value in enumerate(values):
        axes.annotate(
            form.format(value),
            (place, value),
            (0, 3),
            textcoords="offset points",
            ha="center",
            color=PALETTE["ink"],
            fontsize=8,
        )


def write_pngs(folder: Path, plots: Sequence[Plot]) -> dict[str, Path]:
    """Write NAME.png for each plot into a folder, created if missing; return the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for plot in plots:
        picture = io.BytesIO()
        FigureCanvasAgg(plot.figure).print_figure(picture, format="png", dpi=PNG_DPI)
        files[plot.name] = write_file(folder / f"{plot.name}.png", picture.getvalue())
    return files


def as_svg(plot: Plot) -> Markup:
    """Return the figure as an SVG element with text as text and colours as CSS variables."""
    picture = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        FigureCanvasSVG(plot.figure).print_figure(picture, format="svg", metadata={"Date": None})
    text = picture.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font: ([^;']*?)'[^\"]*?sans-serif", r"font: \1var(--font)", text)
    # Matplotlib repeats ids in every figure; prefix them to keep clip paths apart on one page.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{plot.name}-", text)
    label = f'role="img" aria-label="{escape(plot.caption)}"'
    text = visible(re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: label, text, count=1))
    return Markup(text)  # safe: the caption is escaped, and Matplotlib escapes text


def load_template(name: str) -> jinja2.Template:
    """Return a template of `templates/`: it escapes texts, masks credentials and shows direction marks as \\u202e."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rayface"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: visible(mask(value)) if type(value) is str else value,
    )
    return environment.get_template(name)
