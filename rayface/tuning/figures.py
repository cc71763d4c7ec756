"""Pictures of a study: Optuna's, and heat maps of the objective over two parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import plotly.graph_objects as go
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from rayface.report import PALETTE, PNG_DPI
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Spec

_NUM_BINS = 5  # of a range, in a heat map


@dataclass(frozen=True)
class HeatMap:
    """Means of the first objective over cells of two parameters.

    Attributes:
        x, y: keys.
        x_labels, y_labels: of the cells.
        means, counts: (len(y_labels), len(x_labels)); NaN where no trial is.
    """

    x: str
    y: str
    x_labels: list[str]
    y_labels: list[str]
    means: NDArray[np.float64]
    counts: NDArray[np.int64]


def heat_map(trials: list[FrozenTrial], space: dict[str, Parameter], x: str, y: str) -> HeatMap:
    """Sort complete trials that have both parameters into cells: choices as they are, ranges in five equal parts."""
    (x_labels, x_place), (y_labels, y_place) = _cells(space[x]), _cells(space[y])
    sums, counts = np.zeros((len(y_labels), len(x_labels))), np.zeros((len(y_labels), len(x_labels)), np.int64)
    for trial in trials:
        if x in trial.params and y in trial.params:
            place = y_place(trial.params[y]), x_place(trial.params[x])
            sums[place] += trial.values[0]
            counts[place] += 1
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return HeatMap(x, y, x_labels, y_labels, means, counts)


def draw(study: optuna.Study, spec: Spec) -> list[dict[str, Any]]:
    """The figures of the page: caption, width, and HTML that needs `script()` before it."""
    complete = _complete(study)
    drawn: list[tuple[str, bool, go.Figure]] = []
    names = [objective.metric for objective in spec.objectives]
    target = _first if len(names) > 1 else None
    if len(complete) > 1:
        views: Any = optuna.visualization
        if len(names) in (2, 3):
            drawn.append(("Pareto front", True, views.plot_pareto_front(study, target_names=names)))
        options = {"target": target, "target_name": names[0]}
        drawn.append(("History", True, views.plot_optimization_history(study, **options)))
        if _varied(complete):
            drawn.append(("Importance of the parameters", True, _importances(study, complete, names[0])))
            drawn.append(("Parallel coordinates", True, views.plot_parallel_coordinate(study, **options)))
        drawn += [(_caption(h), False, _plotly_heat_map(h, names[0])) for h in _heat_maps(complete, spec)]
    if len(names) == 1 and any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        curves = optuna.visualization.plot_intermediate_values(study)
        drawn.append(("While they train", True, curves))
    return [{"caption": caption, "wide": wide, "html": _html(figure)} for caption, wide, figure in drawn]


def write_pngs(study: optuna.Study, spec: Spec, folder: Path) -> None:
    """The same as pictures for trackers: history, importance, parallel coordinates, heat maps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(exist_ok=True)
    complete, name = _complete(study), spec.objectives[0].metric
    if len(complete) < 2:
        return
    views: Any = optuna.visualization.matplotlib
    options = {"target": _first if len(spec.objectives) > 1 else None, "target_name": name}
    plots: dict[str, Callable[[], Any]] = {"history": lambda: views.plot_optimization_history(study, **options)}
    if _varied(complete):
        plots["parallel_coordinates"] = lambda: views.plot_parallel_coordinate(study, **options)
    for file, plot in plots.items():
        with matplotlib.rc_context():  # Optuna changes the style of all that is drawn later
            plot()
            plt.gcf().set_size_inches(10, 4.5)
            plt.savefig(folder / f"{file}.png", dpi=PNG_DPI, bbox_inches="tight")
            plt.close("all")
    if _varied(complete):
        _save(_bars(_importance(study, complete), name), folder / "importance.png")
    for drawn in _heat_maps(complete, spec):
        file = f"heatmap_{drawn.x}_{drawn.y}".replace(".", "_")
        _save(_matplotlib_heat_map(drawn, name), folder / f"{file}.png")


def script() -> Markup:
    """plotly.js, so that the page needs nothing from elsewhere."""
    return Markup(get_plotlyjs())


def _first(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _varied(trials: list[FrozenTrial]) -> bool:
    """Whether there is a parameter that all have and that differs: importance is of those."""
    common = set.intersection(*(set(trial.params) for trial in trials))
    return any(len({str(trial.params[key]) for trial in trials}) > 1 for key in common)


def _importance(study: optuna.Study, trials: list[FrozenTrial]) -> dict[str, float]:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    target = _first if len(study.directions) > 1 else None
    if len({trial.values[0] for trial in trials}) < 2:  # nothing to explain
        return {}
    return optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)


def _importances(study: optuna.Study, trials: list[FrozenTrial], name: str) -> go.Figure:
    found = dict(reversed(_importance(study, trials).items()))
    figure = go.Figure(go.Bar(x=list(found.values()), y=list(found), orientation="h", marker_color=PALETTE["blue"]))
    figure.update_layout(xaxis_title=f"share of the variance of {name} (fANOVA)")
    return figure


def _cells(parameter: Parameter) -> tuple[list[str], Callable[[Any], int]]:
    values = parameter.grid()
    if values is not None and (parameter.choices is not None or len(values) <= 2 * _NUM_BINS):
        return [_text(value) for value in values], lambda value: _nearest(values, value)
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    edges = np.geomspace(low, high, _NUM_BINS + 1) if parameter.log else np.linspace(low, high, _NUM_BINS + 1)
    labels = [f"{a:.2g} to {b:.2g}" for a, b in pairwise(edges)]
    return labels, lambda value: int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, _NUM_BINS - 1))


def _nearest(values: tuple[Any, ...], value: Any) -> int:
    if value in values:
        return values.index(value)
    return int(np.argmin([abs(float(other) - float(value)) for other in values]))


def _heat_maps(trials: list[FrozenTrial], spec: Spec) -> list[HeatMap]:
    return [heat_map(trials, spec.search, x, y) for x, y in spec.heatmaps]


def _caption(drawn: HeatMap) -> str:
    return f"{drawn.x} and {drawn.y}"


def _cell_texts(drawn: HeatMap) -> list[list[str]]:
    return [
        ["" if n == 0 else f"{mean:.4g}" + (f" ({n})" if n > 1 else "") for mean, n in zip(*row, strict=True)]
        for row in zip(drawn.means, drawn.counts, strict=True)
    ]


def _plotly_heat_map(drawn: HeatMap, name: str) -> go.Figure:
    texts = _cell_texts(drawn)
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(v) else float(v) for v in row] for row in drawn.means],
            x=drawn.x_labels,
            y=drawn.y_labels,
            text=texts,
            texttemplate="%{text}",
            colorscale="Blues",
            colorbar={"title": name},
        )
    )
    figure.update_layout(xaxis={"title": drawn.x, "type": "category"}, yaxis={"title": drawn.y, "type": "category"})
    return figure


def _matplotlib_heat_map(drawn: HeatMap, name: str) -> Figure:
    figure = Figure(figsize=(7, 4.6), facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(drawn.means, cmap="Blues", aspect="auto", origin="lower")
    axes.set_xticks(range(len(drawn.x_labels)), drawn.x_labels, fontsize=8)
    axes.set_yticks(range(len(drawn.y_labels)), drawn.y_labels, fontsize=8)
    axes.set_xlabel(drawn.x, color=PALETTE["muted"])
    axes.set_ylabel(drawn.y, color=PALETTE["muted"])
    middle = (np.nanmin(drawn.means) + np.nanmax(drawn.means)) / 2 if drawn.counts.any() else 0.0
    for row, texts in enumerate(_cell_texts(drawn)):
        for column, text in enumerate(texts):
            colour = "white" if drawn.means[row, column] > middle else PALETTE["ink"]
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    figure.colorbar(image, label=name)
    return figure


def _bars(values: dict[str, float], name: str) -> Figure:
    figure = Figure(figsize=(7, 0.8 + 0.45 * len(values)), facecolor=PALETTE["surface"], layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(reversed(values)), list(reversed(values.values())), color=PALETTE["blue"])
    axes.set_xlabel(f"share of the variance of {name} (fANOVA)", color=PALETTE["muted"])
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(str(path), format="png", dpi=PNG_DPI)


def _html(figure: go.Figure) -> Markup:
    figure.update_layout(title=None, template="plotly_white", width=None, margin={"t": 20, "r": 20, "b": 50})
    options = {"responsive": True, "displaylogo": False}
    return Markup(to_html(figure, full_html=False, include_plotlyjs=False, config=options, default_height=420))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
