"""Figures and report of an evaluation in MLflow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rayface.config import Config, flat
from rayface.evaluation.pair_scores import PAIR_SCORES
from rayface.evaluation.protocol import ProtocolResult
from rayface.storage import is_local
from rayface.tracking.job import tracked_job
from rayface.tracking.spool import spool

_FILES = ("report.html", "evaluation.json", PAIR_SCORES)


def track_evaluation(root: str, config: Config, results: Mapping[str, ProtocolResult]) -> None:
    """Log an evaluation to MLflow if a server or database is named: by tracking.uri or MLFLOW_TRACKING_URI.

    Metrics are named PROTOCOL/FIGURE. Files are logged from a local output folder.

    Args:
        root: output folder of the evaluation.
    """
    if not config.tracking.enabled or not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        return
    params = {key: value for key, value in flat(config).items() if key.startswith("evaluate.")}
    with spool(root) as folder, tracked_job(folder, config.tracking, params) as job:
        metrics = {name: value for name, value in _numbers(results) if math.isfinite(value)}
        job.journal.metrics(metrics, step=0)
        if is_local(root):
            for name in _FILES:
                if (Path(root) / name).is_file():
                    job.journal.artifact(Path(root) / name)
            for path in sorted((Path(root) / "plots").glob("*.png")):
                job.journal.artifact(path, "plots")


def _numbers(results: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested figures with their names, parts between slashes."""
    for name, value in results.items():
        if isinstance(value, ProtocolResult):
            yield from _numbers(value.figures(), f"{name}/")
        elif isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
