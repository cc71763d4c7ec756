"""Heat map of a study's first objective over two parameters: bins, their labels, means and counts."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from rayface.tuning.search_space import Parameter

_NUM_BINS = 5  # bins of a range


@dataclass(frozen=True)
class HeatMap:
    """Mean of the first objective per bin of two parameters.

    Attributes:
        x, y: config keys of the parameters.
        x_labels, y_labels: labels of the bins.
        means, counts: (len(y_labels), len(x_labels)); means are NaN in bins without trials.
    """

    x: str
    y: str
    x_labels: list[str]
    y_labels: list[str]
    means: NDArray[np.float64]
    counts: NDArray[np.int64]


def heat_map(trials: list[FrozenTrial], space: dict[str, Parameter], x: str, y: str) -> HeatMap:
    """Bin the complete trials that have both parameters: one bin per choice, five equal bins per range."""
    (x_labels, x_place), (y_labels, y_place) = _cells(space[x]), _cells(space[y])
    sums, counts = np.zeros((len(y_labels), len(x_labels))), np.zeros((len(y_labels), len(x_labels)), np.int64)
    for trial in trials:
        if x in trial.params and y in trial.params:
            place = y_place(trial.params[y]), x_place(trial.params[x])
            sums[place] += trial.values[0]
            counts[place] += 1
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return HeatMap(x, y, x_labels, y_labels, means, counts)


def _cells(parameter: Parameter) -> tuple[list[str], Callable[[Any], int]]:
    values = parameter.grid()
    if values is not None and (parameter.choices is not None or len(values) <= 2 * _NUM_BINS):
        return [_text(value) for value in values], lambda value: _nearest(values, value)
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    edges = np.geomspace(low, high, _NUM_BINS + 1) if parameter.log else np.linspace(low, high, _NUM_BINS + 1)
    labels = _bin_labels([float(edge) for edge in edges])
    return labels, lambda value: int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, _NUM_BINS - 1))


def _bin_labels(edges: list[float]) -> list[str]:
    """Return a label for each bin, with as many digits as make the edges differ."""
    texts: list[str] = []
    for digits in range(2, 10):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(texts):
            break
    return [f"{low} to {high}" for low, high in pairwise(texts)]


def _nearest(values: tuple[Any, ...], value: Any) -> int:
    if value in values:
        return values.index(value)
    return int(np.argmin([abs(float(other) - float(value)) for other in values]))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
