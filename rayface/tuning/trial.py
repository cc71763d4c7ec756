"""One trial: a training run in a process that Ray Tune starts."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError

from rayface import config as configs
from rayface.config import Config
from rayface.files import write_file
from rayface.pools import background_thread
from rayface.progress import Bar, shown_on
from rayface.ray_errors import in_one_line, root_cause
from rayface.session import NoRoomError
from rayface.stages import STAGES
from rayface.storage import AnyPath, uri_of
from rayface.tracking import RUN_NAME
from rayface.tracking.journal import read_records
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.recovery.rollback import NodesLostError
from rayface.training.run_directory import RunDirectory
from rayface.training.trainer import train_or_resume
from rayface.tuning.sweep_directory import SweepDirectory, core_set_of, trial_name

_POLL_SECONDS = 0.5


def run_trial(
    job: Mapping[str, Any],
    *,
    sweep: SweepDirectory,
    base: Mapping[str, Any],
    metrics: Sequence[str],
    watch: str | None,
    tags: Mapping[str, str],
    held_cpus: float,
    address: str | None,
) -> None:
    """Prune if configured, train with the sampled values, and report the outcome to Ray Tune.

    Called again after its process was killed, it resumes the run from its last checkpoint.

    Args:
        job: trial (its number) and values (by config key).
        sweep: the sweep's directory.
        base: base config that the values override.
        metrics: names of the objectives in the result.
        watch: metric of the journal to report during training; None: no reports.
        tags: tags of the MLflow run.
        held_cpus: CPUs reserved by the concurrent trials.
        address: Ray cluster whose nodes the trial waits for; None: a local Ray.

    Raises:
        RayError: a node was lost; Ray Tune restarts the trial in another process.
    """
    run = sweep.run(job["trial"]).path
    try:
        config = configs.with_overrides(configs.from_dict(base), {**job["values"], "train.output": uri_of(run)})
        pruning = None
        if config.prune.embeddings is not None:
            config, pruning = _pruned(config, core_set_of(run))
        tags = {**tags, RUN_NAME: trial_name(run)}
        result = _trained(config, watch, pruning, tags=tags, held_cpus=held_cpus, address=address)
        numbers = [float(result.get(metric, math.nan)) for metric in metrics]
        missing = [metric for metric, value in zip(metrics, numbers, strict=True) if not math.isfinite(value)]
        if missing:
            tune.report({"state": "FAIL", "reason": f"{', '.join(missing)}: is not a finite number in the result"})
        else:
            tune.report({"state": "COMPLETE", "values": numbers, "seconds": result["seconds"]})
    except TrainingInterruptedError:
        tune.report({"state": "PRUNED"})
    except (NodesLostError, NoRoomError) as error:
        tune.report({"state": "LOST", "reason": " ".join(str(error).split())})
    except Exception as error:  # report the failure, so that the sweep continues
        if isinstance(root_cause(error), RayError):
            raise  # the node of the run's controller was lost: Ray Tune restarts the trial
        tune.report({"state": "FAIL", "reason": in_one_line(error)})


@dataclass(frozen=True)
class _Pruning:
    """A trial's prune stage: its core set, and the values of its result."""

    core_set: AnyPath
    facts: Mapping[str, Any]


def _pruned(config: Config, core_set: AnyPath) -> tuple[Config, _Pruning]:
    """Prune data.train; return the config that trains on the core set, and the prune stage."""
    out = uri_of(core_set)
    # Tracked in the trial's own run instead; see _log_prune.
    stage = {"prune.data": config.data.train, "prune.out": out, "tracking.enabled": False}
    facts = STAGES["prune"].run(configs.with_overrides(config, stage))
    return configs.with_overrides(config, {"data.train": out}), _Pruning(core_set, facts)


def _trained(config: Config, watch: str | None, pruning: _Pruning | None, **options: object) -> Mapping[str, Any]:
    with shown_on(_TrialDisplay(watch, pruning)):
        return train_or_resume(config, **options)


class _TrialDisplay:
    """`progress.Display` that reports a metric of the run's journal to Ray Tune."""

    def __init__(self, watch: str | None, pruning: _Pruning | None) -> None:
        self._watch, self._pruning = watch, pruning

    @contextmanager
    def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> Iterator[Bar]:
        yield lambda done, total: None

    @contextmanager
    def training(self, run: Path, journal: Path, total_steps: int) -> Iterator[None]:
        if self._pruning is not None:
            _log_prune(run, self._pruning)
        with background_thread(partial(_report_evaluations, journal, self._watch), "evaluations", wait=None):
            yield


def _log_prune(run: Path, pruning: _Pruning) -> None:
    journal = RunDirectory(run).journal("prune")
    numbers = {key: value for key, value in pruning.facts.items() if isinstance(value, int | float)}
    journal.metrics({f"prune/{key}": value for key, value in numbers.items()}, 0)
    report = journal.path.parent / "prune" / "report.html"  # a record names files of its own run only
    report.parent.mkdir(exist_ok=True)
    journal.artifact(write_file(report, (pruning.core_set / "report.html").read_bytes()), "prune")
    journal.close()


def _report_evaluations(path: Path, watch: str | None, done: threading.Event) -> None:
    """Report every value of a metric in the journal, except that of step 0, until `done` is set."""
    offset = 0
    while watch is not None:
        last = done.wait(_POLL_SECONDS)
        for record, end in read_records(path, offset) if path.exists() else ():
            offset = end
            if record and record["kind"] == "metrics" and watch in record["values"] and record["step"] > 0:
                tune.report({"state": "RUNNING", "step": record["step"], "value": float(record["values"][watch])})
        if last:
            return
