"""Result of a finished run, and its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayface.data.dataset import Dataset
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values
from rayface.training.validate import data_text
from rayface.values import percent_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a finished run."""

    run: RunDirectory
    steps: int
    faults: int
    """Number of skipped corrupt samples."""
    loss: float | None
    """Loss of the last step; None if the run was resumed after it."""
    images_per_second: float
    """Median over the run."""
    seconds: float
    """Total seconds of all sessions of the run."""
    evaluation: Values = field(default_factory=dict)
    """Figures of the last validation; empty without one."""
    accuracy_before: float | None = None
    """Accuracy before the first step; None without validation."""
    tracking: str | None = None
    """Tracking URI; None if tracking is off."""
    tracking_delivered: bool | None = None
    tracking_link: str | None = None
    """Address of the run in MLflow's pages."""

    def for_file(self) -> Values:
        """Return the values of result.json."""
        before = {} if self.accuracy_before is None else {"accuracy_before": self.accuracy_before}
        return {
            "run": str(self.run),
            "model": str(self.run.model),
            "report": str(self.run.report),
            "steps": self.steps,
            "faults": self.faults,
            "loss": self.loss,
            **self.evaluation,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            **before,
        }

    def as_dict(self) -> dict[str, object]:
        """Return the values that `rayface train --json` prints."""
        tracked = {"tracking": self.tracking, "tracking_delivered": self.tracking_delivered}
        return {**self.for_file(), **tracked, "tracking_link": self.tracking_link}

    def to_pandas(self) -> pd.DataFrame:
        """Return the metrics of the run, a row for each step and a column for each metric; see `RunDirectory`."""
        return self.run.to_pandas()


def write_results(run: RunDirectory, dataset: Dataset, *, seconds: float) -> TrainResult:
    """Write the report and the result of a run whose workers have finished."""
    metrics, outcome = run.read_metrics(), dict(run.read_outcome())
    speeds = sorted(value for _, value, _ in metrics.get("train/images_per_second", []))
    accuracy = metrics.get("eval/accuracy")
    result = TrainResult(
        run=run,
        steps=outcome.pop("steps"),
        faults=outcome.pop("faults"),
        loss=outcome.pop("loss"),
        evaluation=outcome,
        images_per_second=speeds[len(speeds) // 2] if speeds else 0.0,
        seconds=seconds,
        accuracy_before=accuracy[0][1] if accuracy else None,
    )
    from rayface.training.report import write_report  # matplotlib: not at the start of a run

    evaluation = run.read_evaluation() if accuracy else None
    write_report(run, metrics=metrics, table=_table(result, dataset, evaluation or {}), evaluation=evaluation)
    run.write_result(result.for_file())  # last, because it marks the run as finished
    return result


def _table(result: TrainResult, dataset: Dataset, evaluation: Values) -> list[tuple[str, str]]:
    rows = [
        ("data", data_text(dataset)),
        ("steps", f"{result.steps:,}"),
        ("images/s", f"{result.images_per_second:,.0f}"),
        ("seconds", f"{result.seconds:,.0f}"),
        ("corrupt samples", f"{result.faults:,}"),
    ]
    before = "" if result.accuracy_before is None else f", before {result.accuracy_before:.2%}"
    if result.evaluation.get("accuracy_mean") is not None:
        mean, std = result.evaluation["accuracy_mean"], result.evaluation["accuracy_std"]
        bounds = result.evaluation.get("accuracy_interval") or (None, None)
        interval = "" if None in bounds else f", {percent_interval(bounds)}"
        curves: Values = next(iter(evaluation.get("curves", {}).values()), {})
        measured = f"accuracy on {curves['name']}" if "name" in curves else "accuracy"
        rows.insert(0, (measured, f"{mean:.2%} ± {std:.2%}{interval}{before} (chance: 50%)"))
    return rows
