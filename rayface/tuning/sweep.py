"""Driver of a sweep: own its directory, run the trials, record them, write the results."""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray import tune as ray_tune

from rayface import config as configs
from rayface import tracking
from rayface.config import Config
from rayface.interrupts import terminable
from rayface.plugins import resume_command
from rayface.session import is_cluster, ray_session
from rayface.storage import DataError, RemotePath, StorageError
from rayface.tracking import Journal, shared_tracking
from rayface.tracking.job import tracked_job
from rayface.tracking.origin import origin
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.recovery.placement_groups import remove_orphaned_placement_groups
from rayface.training.run_output import Resume
from rayface.training.validate import dry_run
from rayface.tuning import spec as specs
from rayface.tuning.progress import TrialProgress
from rayface.tuning.ray_tune_settings import keep_credentials, quiet_tune
from rayface.tuning.resources import check_room, most_workers, wait_for_nodes, worker_cpus
from rayface.tuning.results import SweepResult, ended_line, write_results
from rayface.tuning.resume import find_sweep, remember, resume_sweep
from rayface.tuning.search import StudySearch
from rayface.tuning.shipped import sweep_file
from rayface.tuning.spec import WATCHED, Spec
from rayface.tuning.study import best_trials, open_study
from rayface.tuning.sweep_directory import SweepDirectory, new_sweep, trial_name
from rayface.tuning.trial import run_trial

# A trial's own process only waits for its workers. Any fraction of a CPU would not fit beside workers that fill the
# cluster, and Ray Tune requires some resource, so it is one byte of memory.
_TRIAL = ray_tune.PlacementGroupFactory([{"memory": 1}])
_INTERRUPTS = (KeyboardInterrupt, TrainingInterruptedError)
logger = logging.getLogger(__name__)


def tune(
    file: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    preset: str | None = None,
    resume: Resume = False,
    address: str | None = None,
    debug: bool = False,
) -> SweepResult:
    """Run the sweep that a file describes.

    Args:
        file: path or URI of a sweep file, see `Spec`, or the name of one that comes with rayface.
        overrides: as `load_config` takes them; `sweep.KEY` are search settings, others config keys of every trial.
        preset: replaces the file's preset.
        resume: resume a sweep of that file: sweep.output, else the newest of its name under sweeps/. The file is
            compared with the one that the sweep was started with. "auto": start one if there is none.
        address: Ray cluster; None: cluster.address, else RAY_ADDRESS, else a local Ray.
        debug: show the logs of Ray, as cluster.debug does.

    Raises:
        ValueError: bad input; one line.
        RuntimeError: all trials failed, the first ones failed for the same reason, or nodes were lost; one line.
        TrainingInterruptedError: Ctrl-C or SIGTERM stopped it; one line.
    """
    file, overrides = sweep_file(file), configs.override_texts(overrides)
    resume = find_sweep(file, overrides) is not None if resume == "auto" else resume
    start = resume_sweep if resume else new_sweep
    spec, base, folder = start(file, overrides, preset)
    address, debug = address or base.cluster.address, debug or base.cluster.debug
    total_steps = _check_trials(spec, base)
    directory = SweepDirectory(folder)
    base = replace(base, tracking=shared_tracking(base.tracking, directory.working))
    quiet_tune(debug)
    keep_credentials()
    most = most_workers(spec, base)
    num_cpus = spec.sweep.concurrency * worker_cpus(most) + 1
    with (
        directory.exclusive(),
        directory.delivering(resume=resume),
        ray_session(address, num_cpus=num_cpus, debug=debug, prometheus=base.tracking.prometheus),
    ):
        if is_cluster(address):
            wait_for_nodes(spec, most)
        check_room(spec, most)
        storage = spec.sweep.storage or os.environ.get("OPTUNA_STORAGE") or directory.storage
        study = open_study(spec, directory.study_name(resume=resume), storage, total_steps=total_steps, resume=resume)
        directory.store_study()
        if not resume:
            remember(folder, file, overrides, preset, (spec, base))
            specs.dump(spec, base, directory.spec)
        tags = {**origin(), "rayface.sweep": directory.name}  # a trial's own command is that of a Ray worker
        tracked = tracked_job(
            directory.working,
            base.tracking,
            _params(spec, base),
            tags=tags,
            interrupts=_INTERRUPTS,
            output=str(directory),
            name=directory.name if isinstance(folder, RemotePath) else None,
        )
        with directory.session() as seconds, tracked as job:
            job.journal.artifact(directory.spec)
            sweep = _Sweep(spec, base, directory, study, job.journal)
            nested = _nested_in(job.delivery, base.tracking.timeout) if job.delivery else {}
            sweep.run({**tags, **nested}, address or os.environ.get("RAY_ADDRESS"))
            return sweep.finish(seconds(), {**tags, **nested})


def _check_trials(spec: Spec, base: Config) -> int:
    """Check the settings and the data of the trials; return their number of training steps."""
    for choice in spec.search["data.train"].edges() if "data.train" in spec.search else ():
        dry_run(configs.with_overrides(base, {"data.train": choice}))
    return dry_run(base)


def _params(spec: Spec, base: Config) -> dict[str, object]:
    """Return the params of the sweep's own MLflow run."""
    searched = {f"search.{key}": json.dumps(parameter.given()) for key, parameter in spec.search.items()}
    return {**configs.flat(base, specs.groups_of(base)), **searched}


class _Sweep:
    def __init__(
        self, spec: Spec, base: Config, directory: SweepDirectory, study: optuna.Study, journal: Journal
    ) -> None:
        self._spec, self._base, self._directory, self._study, self._journal = spec, base, directory, study, journal
        self._search = StudySearch(study, spec, directory.path, self._ended)

    def run(self, tags: Mapping[str, str], address: str | None) -> None:
        """Run the remaining trials.

        Args:
            tags: tags of the trials' MLflow runs.
            address: Ray cluster whose nodes the trials wait for; None: a local Ray.
        """
        remaining = self._search.remaining
        if not remaining:
            return
        concurrency = self._spec.sweep.concurrency
        metrics = [objective.metric for objective in self._spec.objectives]
        watch = WATCHED.get(metrics[0]) if self._spec.sweep.pruner != "none" else None
        trial = ray_tune.with_parameters(
            run_trial,
            sweep=self._directory,
            base=configs.to_dict(self._base),
            metrics=metrics,
            watch=watch,
            tags=tags,
            held_cpus=(concurrency - 1) * worker_cpus(most_workers(self._spec, self._base)),
            address=address,
        )
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trial, _TRIAL),
            tune_config=ray_tune.TuneConfig(
                search_alg=self._search,
                num_samples=remaining,
                max_concurrent_trials=concurrency,
            ),
            run_config=ray_tune.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=str(self._directory.ray_storage),
                verbose=0,
                # If a trial's process or node is killed, a new process resumes from the last checkpoint.
                failure_config=ray_tune.FailureConfig(max_failures=self._base.train.max_failures),
            ),
        )
        with terminable():
            self._wait_for(lambda: tuner.fit())

    def finish(self, seconds: float, tags: Mapping[str, str]) -> SweepResult:
        """Write the results and log them to MLflow; `tags` are those of the trials' runs."""
        self._check_owned()
        best = best_trials(self._study)
        result = write_results(self._spec, self._base, self._directory.path, self._study, seconds=seconds)
        for path, folder in self._directory.artifacts():
            self._journal.artifact(path, folder)
        self._record_trials({trial.number for trial in best}, tags)
        self._check_ending(bool(result.fail) and result.fail == result.trials, result.trials)
        return result

    @property
    def _again(self) -> str:
        return resume_command("tune", str(self._directory.spec), "--resume")

    def _check_owned(self) -> None:
        if self._directory.is_lost():
            raise RuntimeError(f"sweep.output: {self._directory}: another driver took it over, this one ends")

    def _check_ending(self, all_failed: bool, num_trials: int) -> None:
        """Raise if the sweep has no result, or could not run all of its trials."""
        resume = f"resume with: {self._again}"
        if self._search.lost:
            raise RuntimeError(f"{self._search.lost}; {resume}")
        left = self._search.remaining
        stopped = bool(left and self._search.failing_alike)
        if not all_failed and not stopped:
            return
        what = f"all {num_trials} trials failed" if all_failed else "the first trials failed"
        why = self._first_failure() if all_failed else self._search.failing_alike
        remedy = f"then {resume}" if left else "then start a new sweep"
        ending = " for the same reason, no further ones were started" if stopped else ""
        raise RuntimeError(f"{what}{ending}: {why}: fix it, {remedy}")

    def _first_failure(self) -> str:
        failed = self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))[:1]
        return "".join(f"trial {trial.number}: {trial.user_attrs.get('reason', '')}" for trial in failed)

    def _wait_for(self, function: Callable[[], object]) -> None:
        """Run a function in a thread; on an interrupt, let the trials save their checkpoints first.

        Meanwhile, log the trials' progress, and release the placement groups of killed trial processes, so that their
        replacements can start.
        """
        failures: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            try:
                function()
            except BaseException as error:  # raised again in the waiting thread
                failures.append(error)
            finally:
                done.set()

        threading.Thread(target=call, daemon=True, name="rayface-tune").start()
        progress = TrialProgress(self._directory, self._study)
        try:
            while not done.wait(0.5):
                remove_orphaned_placement_groups()
                progress.show()
        except KeyboardInterrupt as error:
            self._search.stop()
            done.wait(self._base.train.grace_seconds)
            raise TrainingInterruptedError(f"interrupted; resume with: {self._again}", error) from error
        if failures:
            raise failures[0]

    def _ended(self, trial: FrozenTrial) -> None:
        metrics = [objective.metric for objective in self._spec.objectives]
        values = trial.values if trial.state == TrialState.COMPLETE else []
        self._note(trial, lambda journal: _report_ending(journal, trial, dict(zip(metrics, values, strict=False))))
        best = best_trials(self._study)
        ended = sum(other.state.is_finished() for other in self._study.get_trials(deepcopy=False))
        curves = {f"trial/{metric}": value for metric, value in zip(metrics, values, strict=False)}
        if best:
            curves[f"best/{metrics[0]}"] = best[0].values[0]
        self._journal.metrics(curves, ended)
        logger.info("%s", ended_line(trial, metrics, best, ended, self._spec.num_trials))

    def _note(self, trial: FrozenTrial, write: Callable[[Journal], None]) -> None:
        """Write to the sweep's journal of an ended trial; an object store that refuses it must not end the sweep."""
        try:
            with self._directory.run(trial.number).appended("sweep") as journal:
                write(journal)
        except (DataError, StorageError) as error:
            logger.warning("trial %d: its run is not tagged: %s", trial.number, error)

    def _record_trials(self, best: set[int], tags: Mapping[str, str]) -> None:
        """Tag the trials' MLflow runs, and deliver what could not be delivered when they ended."""
        down: list[str] = []  # MLflow that did not answer

        def record(journal: Journal, trial: FrozenTrial) -> None:
            run = self._directory.run(trial.number)
            journal.tags({"best": str(trial.number in best).lower()})
            if self._base.tracking.enabled:
                named = {**tags, tracking.RUN_NAME: trial_name(run.path)}
                delivery = tracking.start(self._base.tracking, run.working, named)
                if not delivery.close(self._base.tracking.timeout):
                    down.append(delivery.uri)

        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and not down:
                self._note(trial, partial(record, trial=trial))
        if down:
            logger.warning(f"MLflow at {down[0]} does not accept the trials' tags: send them with rayface sync RUN")


def _report_ending(journal: Journal, trial: FrozenTrial, values: Mapping[str, float]) -> None:
    journal.params(trial.params)
    journal.metrics({f"objective/{name}": value for name, value in values.items()}, 0)
    journal.tags({"trial": trial.number, "state": trial.state.name, "reason": trial.user_attrs.get("reason", "")})
    if trial.state == TrialState.FAIL:
        journal.finish("FAILED")  # its own process may have been killed before it could


def _nested_in(delivery: tracking.Delivery, timeout: float) -> dict[str, str]:
    deadline = time.monotonic() + timeout
    while delivery.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if delivery.run_id is None:
        logger.warning(f"MLflow at {delivery.uri} does not answer: the trials' runs are not nested in the sweep's run")
        return {}
    return {tracking.PARENT: delivery.run_id}
