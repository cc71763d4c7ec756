"""Trials of a sweep as Ray Tune runs them, and what the driver records of them."""

import logging
import uuid
from collections.abc import Callable, Mapping
from functools import partial

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray import tune as ray_tune

from rayface import config as configs
from rayface import tracking
from rayface.config import Config
from rayface.interrupts import terminable
from rayface.plugins import resume_command
from rayface.storage import DataError, StorageError
from rayface.tracking import Journal
from rayface.training.recovery.interrupt import ThreadedCall, TrainingInterruptedError
from rayface.training.recovery.placement_groups import remove_orphaned_placement_groups
from rayface.tuning.progress import TrialProgress
from rayface.tuning.resources import most_workers, worker_cpus
from rayface.tuning.results import SweepResult, ended_line, write_results
from rayface.tuning.search import StudySearch
from rayface.tuning.spec import WATCHED, Spec
from rayface.tuning.study import best_trials
from rayface.tuning.sweep_directory import SweepDirectory, trial_name
from rayface.tuning.trial import run_trial

# A trial's own process only waits for its workers. Any fraction of a CPU would not fit beside workers that fill the
# cluster, and Ray Tune requires some resource, so it is one byte of memory.
_TRIAL = ray_tune.PlacementGroupFactory([{"memory": 1}])
logger = logging.getLogger(__name__)


class Trials:
    """The trials of a sweep: run those that remain, record how they ended, write the results."""

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
        call = ThreadedCall(function, "rayface-tune")
        call.start()
        progress = TrialProgress(self._directory, self._study)
        try:
            while not call.done.wait(0.5):
                remove_orphaned_placement_groups()
                progress.show()
        except KeyboardInterrupt as error:
            self._search.stop()
            call.done.wait(self._base.train.grace_seconds)
            raise TrainingInterruptedError(f"interrupted; resume with: {self._again}", error) from error
        if call.failures:
            raise call.failures[0]

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
