"""Results of a sweep: best.yaml, result.json, figures and the HTML report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from rayface import config as configs
from rayface import report
from rayface.config import Config
from rayface.evaluation.compare import Difference, accuracy_differences
from rayface.storage import AnyPath, uri_of
from rayface.tracking.job import Tracked
from rayface.tuning import figures
from rayface.tuning.spec import Spec, prunes
from rayface.tuning.study import best_trials
from rayface.tuning.sweep_directory import SweepDirectory
from rayface.version import VERSION

_DIFFERENCE = "accuracy minus best"  # with the 95 % interval of a paired bootstrap over identities


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best trial of a sweep."""

    trial: int
    values: Mapping[str, float]
    """Values of the objectives by metric."""
    params: Mapping[str, Any]
    config: str
    """Path of best.yaml."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Result of a sweep: number of finished trials by state, and the best one if any is complete."""

    sweep: str
    """Directory of the sweep."""
    report: str
    trials: int
    complete: int
    pruned: int
    fail: int
    seconds: float
    """Total seconds of all sessions."""
    best: BestTrial | None
    rows: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Values of every finished trial; not part of result.json."""
    tracked: Tracked | None = None
    """Tracking of the sweep that has just run; not part of result.json."""

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, as in result.json and --json."""
        values = {name: value for name, value in vars(self).items() if name not in ("best", "rows", "tracked")}
        values |= self.tracked.as_dict() if self.tracked else {}
        if self.best is None:
            return values
        best = {"trial": self.best.trial, **self.best.values, "params": self.best.params}
        return {**values, "best": best, "best_config": self.best.config}

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each finished trial: trial, state, the objectives, the searched keys, seconds, reason."""
        return pd.DataFrame(self.rows)


def write_results(spec: Spec, base: Config, folder: AnyPath, study: optuna.Study, *, seconds: float) -> SweepResult:
    """Write the results into the sweep's directory."""
    sweep = SweepDirectory(folder)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    best = best_trials(study)
    states = [trial.state.name.lower() for trial in trials]
    metrics = [objective.metric for objective in spec.objectives]
    result = SweepResult(
        sweep=str(sweep),
        report=str(sweep.report),
        trials=len(trials),
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        fail=states.count("fail"),
        seconds=seconds,
        best=_best(best[0], metrics, sweep) if best else None,
        rows=[_values(trial, metrics) for trial in trials],
    )
    if best:
        _write_best(base, best[0], sweep)
    took = [] if "seconds" in metrics else ["seconds"]
    differences = _differences(trials, best[0].number, sweep) if best else {}
    plots = figures.draw(study, spec)
    figures.write_pngs(study, spec, sweep.plots)
    page = report.load_template("sweep.html").render(
        title=sweep.name,
        table=_table(result),
        plots=plots,
        config="",
        plotly=figures.script(),
        header=["trial", "state", *metrics, *([_DIFFERENCE] if differences else []), *spec.search, *took, "note"],
        rows=[_row(trial, spec, took, {t.number for t in best}, differences) for trial in trials],
        palette=report.PALETTE,
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    sweep.write_results(result.as_dict(), page)
    return result


def _differences(trials: Sequence[FrozenTrial], best: int, sweep: SweepDirectory) -> dict[int, Difference]:
    """Return the difference of each other trial's accuracy from that of the best trial, on the pairs of both."""
    others = {trial.number: uri_of(sweep.run(trial.number).path) for trial in trials if trial.number != best}
    return accuracy_differences(uri_of(sweep.run(best).path), others)


def _best(trial: FrozenTrial, metrics: Sequence[str], sweep: SweepDirectory) -> BestTrial:
    return BestTrial(
        trial=trial.number,
        values=dict(zip(metrics, trial.values, strict=True)),
        params=trial.params,
        config=str(sweep.best_config),
    )


def _values(trial: FrozenTrial, metrics: Sequence[str]) -> dict[str, object]:
    own = {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **dict(zip(metrics, trial.values or [math.nan] * len(metrics), strict=True)),
        **trial.params,
    }
    return own | {name: trial.user_attrs.get(name) for name in ("seconds", "reason") if name not in own}


def _write_best(base: Config, trial: FrozenTrial, sweep: SweepDirectory) -> None:
    params = dict(trial.params)
    if prunes(base):
        params["data.train"] = uri_of(sweep.core_set(trial.number))
    config = configs.with_overrides(base, params)
    configs.dump(replace(config, train=replace(config.train, output=None)), sweep.best_config)


def _table(result: SweepResult) -> list[tuple[str, str]]:
    rows = []
    if best := result.best:
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in best.values.items())
        rows.append(("best", f"trial {best.trial}: {values}"))
        rows += [(key, _text(value)) for key, value in best.params.items()]
    rows.append(("trials", f"{result.complete} complete, {result.pruned} pruned, {result.fail} failed"))
    return [*rows, ("seconds", f"{result.seconds:,.0f}")]


def _row(
    trial: FrozenTrial, spec: Spec, facts: list[str], best: set[int], differences: Mapping[int, Difference]
) -> dict[str, object]:
    values: Sequence[float] = trial.values or []
    cells = [str(trial.number), trial.state.name.lower()]
    cells += [_text(values[k]) if k < len(values) else "-" for k in range(len(spec.objectives))]
    if differences:
        found = differences.get(trial.number)
        cells.append("-" if found is None else _difference(found))
    cells += [_text(trial.params[key]) if key in trial.params else "-" for key in spec.search]
    cells += [_text(trial.user_attrs[key]) if key in trial.user_attrs else "-" for key in facts]
    return {"cells": [*cells, trial.user_attrs.get("reason", "")], "best": trial.number in best}


def _difference(found: Difference) -> str:
    low, high = found.interval
    return f"{found.value:+z.2%} [{low:+z.2%}, {high:+z.2%}], p {found.p_value:.2g}"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ended_line(
    trial: FrozenTrial, metrics: Sequence[str], best: Sequence[FrozenTrial], ended: int, num_trials: int
) -> str:
    """Return a line about a trial that ended as the `ended`-th of `num_trials`."""
    values = trial.values if trial.state == TrialState.COMPLETE else []
    found = ", ".join(f"{metric} {value:.4g}" for metric, value in zip(metrics, values, strict=False))
    tried = " ".join(f"{key}={_text(value)}" for key, value in trial.params.items())
    what = found or trial.user_attrs.get("reason", "")
    text = f"trial {trial.number} ({ended} of {num_trials}): {trial.state.name.lower()} {what}"
    if best and best[0].number != trial.number:
        text += f" (best {best[0].values[0]:.4g}, trial {best[0].number})"
    return f"{text}: {tried}"
