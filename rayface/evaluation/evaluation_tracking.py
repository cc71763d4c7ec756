"""Figures and report of an evaluation in MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rayface.config import Config, flat
from rayface.evaluation.pair_scores import PAIR_SCORES
from rayface.evaluation.protocol import ProtocolResult, finite_numbers
from rayface.storage import path_of
from rayface.tracking.job import tracked_job
from rayface.tracking.spool import spool

_FILES = ("report.html", "evaluation.json", PAIR_SCORES)


def track_evaluation(root: str, config: Config, results: Mapping[str, ProtocolResult]) -> None:
    """Log an evaluation to MLflow if a server or database is named: by tracking.uri or MLFLOW_TRACKING_URI.

    Metrics are named PROTOCOL/FIGURE.

    Args:
        root: output folder of the evaluation.
    """
    if not config.tracking.enabled or not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        return
    out = path_of(root)
    params = {key: value for key, value in flat(config).items() if key.startswith("evaluate.")}
    with spool(root) as folder, tracked_job(folder, config.tracking, params, output=root) as job:
        job.journal.metrics(finite_numbers({name: result.figures() for name, result in results.items()}), step=0)
        for name in _FILES:
            if (out / name).is_file():
                job.journal.artifact(out / name)
        for name in sorted(path.name for path in (out / "plots").iterdir()):
            if name.endswith(".png"):
                job.journal.artifact(out / "plots" / name, "plots")
