"""Figures of a study: Optuna's plots, and heat maps of the objective over two parameters."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import plotly.graph_objects as go
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from rayface.report import PALETTE, PNG_DPI, WIDE, add_legend, new_axes
from rayface.tuning.heat_map import HeatMap, heat_map
from rayface.tuning.spec import Spec

Best = Callable[[list[float]], float]
_PARALLEL = "Parallel coordinates"
_GRID = "rgba(128, 128, 128, 0.25)"  # on a dark page, too, whose figures are inverted
# Blues without its palest third, which cannot be seen on a white page, nor inverted on a dark one.
_BLUES = ("#9ecae1", "#4292c6", "#08306b")
_SCALE = [[k / 2, colour] for k, colour in enumerate(_BLUES)]


def draw(study: optuna.Study, spec: Spec) -> list[dict[str, object]]:
    """Return the figures of the page: caption, width, minimum pixels, and HTML that needs `script()` before it."""
    first = _by_first_objective(study)
    complete = _complete(first)
    drawn: list[tuple[str, bool, go.Figure]] = []
    names = [objective.metric for objective in spec.objectives]
    dark_is_high = spec.objectives[0].mode == "max"
    if len(complete) > 1:
        views: Any = optuna.visualization
        if len(names) in (2, 3):
            drawn.append(("Pareto front", True, _front(views.plot_pareto_front(study, target_names=names))))
        drawn.append(("History", True, _plotly_history(complete, names[0], max if dark_is_high else min)))
        if _varied(complete):
            if found := _importance(first, complete):
                drawn.append(("Parameter importance", True, _importances(found, names[0])))
            drawn.append((_PARALLEL, True, _parallel(first, complete, names[0], dark_is_high)))
        drawn += [
            (f"{h.x} and {h.y}", False, _plotly_heat_map(h, names[0], dark_is_high)) for h in _heat_maps(complete, spec)
        ]
    if len(names) == 1 and any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        curves = optuna.visualization.plot_intermediate_values(study)
        curves.update_layout(showlegend=False, xaxis_title="step", yaxis_title=names[0])
        drawn.append(("Intermediate values", True, curves))
    pixels = {_PARALLEL: 90 * (1 + len(spec.search))}
    return [
        {"caption": caption, "wide": wide, "pixels": pixels.get(caption, 0), "html": _html(figure)}
        for caption, wide, figure in drawn
    ]


def write_pngs(study: optuna.Study, spec: Spec, folder: Path) -> None:
    """Write the figures as PNG files for trackers: history, importance, parallel coordinates, heat maps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(exist_ok=True)
    first = _by_first_objective(study)
    complete, name = _complete(first), spec.objectives[0].metric
    if len(complete) < 2:
        return
    views: Any = optuna.visualization.matplotlib
    best = max if spec.objectives[0].mode == "max" else min
    _save(_history(complete, name, best), folder / "history.png")
    if _varied(complete):
        # Optuna changes Matplotlib's global style and warns about axes with one value only.
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            views.plot_parallel_coordinate(first, target_name=name).set_title("")
            for axes in plt.gcf().axes:
                for lines in axes.collections:
                    lines.set_cmap(_colours(best is max))
            plt.gcf().set_size_inches(10, 4.5)
            plt.savefig(folder / "parallel_coordinates.png", dpi=PNG_DPI, bbox_inches="tight")
            plt.close("all")
        if found := _importance(first, complete):
            _save(_bars(found, name), folder / "importance.png")
    for drawn in _heat_maps(complete, spec):
        file = f"heatmap_{drawn.x}_{drawn.y}".replace(".", "_")
        _save(_matplotlib_heat_map(drawn, name, best is max), folder / f"{file}.png")


def script() -> Markup:
    """Return plotly.js, so that the page is self-contained."""
    return Markup(get_plotlyjs())


def _by_first_objective(study: optuna.Study) -> optuna.Study:
    """Return the study with its first objective only, as Optuna's single-objective plots need it."""
    if len(study.directions) == 1:
        return study
    first = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials():
        if trial.values:
            trial.values = trial.values[:1]
        first.add_trial(trial)
    return first


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _varied(trials: list[FrozenTrial]) -> bool:
    """Return whether a parameter that all trials have varies; importance is defined for such parameters only."""
    common = set.intersection(*(set(trial.params) for trial in trials))
    return any(len({str(trial.params[key]) for trial in trials}) > 1 for key in common)


def _importance(study: optuna.Study, trials: list[FrozenTrial]) -> dict[str, float]:
    """Return the importance by key, highest first; empty if the objective does not vary."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    if len({trial.values[0] for trial in trials}) < 2:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _whole_numbers(count: int) -> dict[str, int]:
    """Return the ticks of an axis of `count` trials: no trial has the number 0.5."""
    return {"tick0": 0, "dtick": max(1, -(-count // 10))}


def _front(figure: go.Figure) -> go.Figure:
    """Return Optuna's Pareto front with points that can be seen, and whole numbers of trials."""
    for trace in figure.data:
        best = "best" in str(trace.marker.colorbar.title.text).lower()  # in reds, as Optuna has them
        scale = [[0, "#fc9272"], [1, "#a50f15"]] if best else _SCALE
        trace.marker.update(colorscale=scale, size=9, colorbar=_whole_numbers(len(trace.x or ())))
    return figure


def _importances(found: dict[str, float], name: str) -> go.Figure:
    found = dict(reversed(found.items()))
    figure = go.Figure(go.Bar(x=list(found.values()), y=list(found), orientation="h", marker_color=PALETTE["blue"]))
    figure.update_layout(xaxis_title=f"share of the variance<br>of {name}")
    return figure


def _parallel(study: optuna.Study, trials: list[FrozenTrial], name: str, dark_is_high: bool) -> go.Figure:
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=name)
    _recolour(figure, dark_is_high)
    keys = sorted(set().union(*(trial.params for trial in trials)))
    short = [key.rpartition(".")[2] for key in keys]
    labels = [label if short.count(label) == 1 else key for key, label in zip(keys, short, strict=True)]
    if len(figure.layout.xaxis.ticktext or ()) == 1 + len(labels):  # Optuna truncates labels; older versions set none
        figure.layout.xaxis.ticktext = [name, *labels]
    return figure


def _recolour(figure: go.Figure, dark_is_high: bool) -> None:
    """Colour the lines of Optuna's parallel coordinates so that the palest can be seen too."""
    for trace in figure.data:
        if trace.type == "parcoords":  # of older versions of Optuna
            trace.line.update(colorscale=_SCALE, showscale=False)
        elif trace.mode == "lines":  # on the first axis, from 0 to 1, is the objective
            place = trace.y[0] if dark_is_high else 1 - trace.y[0]
            trace.line.update(color=sample_colorscale(_SCALE, [place])[0], width=2)
            trace.opacity = 0.9
        else:
            trace.marker.update(colorscale=_SCALE, showscale=False)  # the first axis has the values


def _heat_maps(trials: list[FrozenTrial], spec: Spec) -> list[HeatMap]:
    return [heat_map(trials, spec.search, x, y) for x, y in spec.heatmaps]


def _cell_texts(drawn: HeatMap) -> list[list[str]]:
    return [
        ["" if n == 0 else f"{mean:.4g}" + (f" ({n})" if n > 1 else "") for mean, n in zip(*row, strict=True)]
        for row in zip(drawn.means, drawn.counts, strict=True)
    ]


def _plotly_heat_map(drawn: HeatMap, name: str, dark_is_high: bool) -> go.Figure:
    texts = _cell_texts(drawn)
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(v) else float(v) for v in row] for row in drawn.means],
            x=drawn.x_labels,
            y=drawn.y_labels,
            text=texts,
            texttemplate="%{text}",
            textfont={"size": 11},
            colorscale=_SCALE,
            reversescale=not dark_is_high,
            showscale=False,  # the cells have the values; on a phone the bar takes half of the width
            xgap=2,
            ygap=2,
        )
    )
    axis = {"type": "category", "showgrid": False, "automargin": True}
    x, y = ([*axis_labels] for axis_labels in (drawn.x_labels, drawn.y_labels))
    figure.update_layout(
        xaxis={**axis, **_two_lines(x), "title": drawn.x, "categoryarray": x, "range": [-0.5, len(x) - 0.5]},
        yaxis={**axis, **_two_lines(y), "title": drawn.y, "categoryarray": y, "range": [-0.5, len(y) - 0.5]},
    )
    return figure


def _two_lines(labels: list[str]) -> dict[str, object]:
    """Return ticks whose ranges take two short lines."""
    texts = [label.replace(" to ", "<br>to ") for label in labels]
    return {"tickvals": labels, "ticktext": texts, "tickangle": 0, "tickfont": {"size": 10}}


def _so_far(trials: list[FrozenTrial], best: Best) -> tuple[list[int], list[float], list[float]]:
    """Return numbers, values and best values so far of complete trials."""
    numbers, values = [trial.number for trial in trials], [trial.values[0] for trial in trials]
    return numbers, values, [best(values[: k + 1]) for k in range(len(values))]


def _plotly_history(trials: list[FrozenTrial], name: str, best: Best) -> go.Figure:
    numbers, values, so_far = _so_far(trials, best)
    line = {"color": PALETTE["orange"], "width": 2, "shape": "hv"}
    figure = go.Figure(
        [
            go.Scatter(x=numbers, y=so_far, mode="lines", line=line, name="best so far"),
            go.Scatter(x=numbers, y=values, mode="markers", marker={"color": PALETTE["blue"], "size": 8}, name="trial"),
        ]
    )
    return figure.update_layout(
        xaxis={"title": "trial", **_whole_numbers(1 + max(numbers))}, yaxis={"title": name, "automargin": True}
    )


def _history(trials: list[FrozenTrial], name: str, best: Best) -> Figure:
    figure, axes = new_axes(WIDE, "trial", name)
    numbers, values, so_far = _so_far(trials, best)
    axes.plot(numbers, so_far, color=PALETTE["orange"], linewidth=2, drawstyle="steps-post", label="best so far")
    axes.plot(numbers, values, "o", color=PALETTE["blue"], markersize=5, label="trial")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    add_legend(axes)
    return figure


def _matplotlib_heat_map(drawn: HeatMap, name: str, dark_is_high: bool) -> Figure:
    figure = Figure(figsize=(7, 4.6), facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(PALETTE["grid"])
    image = axes.imshow(drawn.means, cmap=_colours(dark_is_high), aspect="auto", origin="lower")
    axes.set_xticks(
        range(len(drawn.x_labels)), [label.replace(" to ", "\nto ") for label in drawn.x_labels], fontsize=8
    )
    axes.set_yticks(range(len(drawn.y_labels)), drawn.y_labels, fontsize=8)
    axes.set_xlabel(drawn.x, color=PALETTE["muted"])
    axes.set_ylabel(drawn.y, color=PALETTE["muted"])
    middle = (np.nanmin(drawn.means) + np.nanmax(drawn.means)) / 2 if drawn.counts.any() else 0.0
    for row, texts in enumerate(_cell_texts(drawn)):
        for column, text in enumerate(texts):
            dark = (drawn.means[row, column] > middle) == dark_is_high
            colour = "white" if dark else PALETTE["ink"]
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    figure.colorbar(image, label=name)
    return figure


def _colours(dark_is_high: bool) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("blues", _BLUES if dark_is_high else _BLUES[::-1])


def _bars(values: dict[str, float], name: str) -> Figure:
    figure = Figure(figsize=(7, 0.8 + 0.45 * len(values)), facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(reversed(values)), list(reversed(values.values())), color=PALETTE["blue"])
    axes.set_xlabel(f"share of {name}'s variance (fANOVA)", color=PALETTE["muted"])
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(str(path), format="png", dpi=PNG_DPI)


def _html(figure: go.Figure) -> Markup:
    figure.update_layout(
        title=None,
        template="plotly_white",
        width=None,
        margin={"t": 30, "r": 20, "b": 50, "l": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",  # transparent: the page is light or dark
        plot_bgcolor="rgba(0,0,0,0)",  # cells without trials too
        font={"family": "system-ui, sans-serif", "color": PALETTE["ink"]},
    )
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID)
    options = {"responsive": True, "displayModeBar": False}
    return Markup(to_html(figure, full_html=False, include_plotlyjs=False, config=options, default_height=420))
