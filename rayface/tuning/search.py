"""Adapter between Ray Tune, which runs the trials, and the Optuna study, which samples and prunes them."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rayface.storage import AnyPath, RemotePath
from rayface.tuning.search_space import suggest
from rayface.tuning.spec import Spec
from rayface.tuning.study import interrupted, num_new_trials
from rayface.tuning.sweep_directory import SweepDirectory

_ALIKE = 3  # stop the sweep when so many first trials of a session all fail for the same reason
_KILLED = "its process was killed more than train.max_failures times"
Ended = Callable[[optuna.trial.FrozenTrial], None]


class StudySearch(Searcher):
    """Ray Tune search algorithm that samples from an Optuna study.

    Trials that were running when the sweep was interrupted come first, under their own numbers. A trial that the
    study's pruner stops is asked to stop as by Ctrl-C: it saves a checkpoint and ends its MLflow run.

    Args:
        study: study from `open_study`.
        spec: search space and number of trials.
        folder: directory of the sweep.
        ended: called with every trial that has ended.

    Attributes:
        lost: the trial that the cluster has no nodes left for, and why; "" if none. No further trial starts then.
    """

    def __init__(self, study: optuna.Study, spec: Spec, folder: AnyPath, ended: Ended) -> None:
        super().__init__()
        self._study, self._spec, self._sweep, self._ended = study, spec, SweepDirectory(folder), ended
        self._again = [trial.number for trial in interrupted(study)]
        self._trials: dict[str, optuna.Trial] = {}
        self._pruned: set[str] = set()
        self._endings: list[str | None] = []  # per trial ended in this session: why it failed, None if it did not
        self.lost = ""
        budget = spec.sweep.time_budget
        self._deadline = math.inf if budget is None else time.monotonic() + budget
        self._stopped = False

    @property
    def remaining(self) -> int:
        """Number of trials left to run, including interrupted ones."""
        return num_new_trials(self._spec, self._study) + len(self._again)

    @property
    def failing_alike(self) -> str:
        """The reason why all of the session's first trials failed, if it is the same one; else ""."""
        first = self._endings[0] if len(self._endings) >= _ALIKE else None
        return first if first is not None and self._endings.count(first) == len(self._endings) else ""

    def stop(self) -> None:
        """Start no more trials and ask the running ones to stop; a resume of the sweep continues them."""
        self._stopped = True
        for trial in list(self._trials.values()):  # Ray Tune's thread adds and removes trials meanwhile
            self._ask_to_stop(trial.number)

    def set_search_properties(self, metric: str | None, mode: str | None, config: object, **spec: object) -> bool:
        return True  # the study holds metric, mode and space

    def save(self, checkpoint_path: str) -> None:
        pass  # the study is the state

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __getstate__(self) -> dict[str, object]:
        """Return no state: Ray Tune writes its searcher to disk, and the study's URI may hold a password."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, object] | str | None:
        if self._stopped or self.lost or time.monotonic() > self._deadline or not self.remaining:
            return Searcher.FINISHED
        if self._sweep.is_lost():  # another driver goes on with the trials
            self.stop()
            return Searcher.FINISHED
        if self.failing_alike:
            return None if self._trials else Searcher.FINISHED  # a running trial may still succeed
        if self._again:
            frozen = self._study.get_trials(deepcopy=False)[self._again.pop(0)]
            trial = optuna.Trial(self._study, frozen._trial_id)
        else:
            trial = self._study.ask()
        self._trials[trial_id] = trial
        values = suggest(self._spec.search, trial)
        self._sweep.store_study()
        return {"trial": trial.number, "values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._trials[trial_id]
        if result.get("state") != "RUNNING" or self._spec.sweep.pruner == "none":
            return
        if trial_id in self._pruned:  # ask again: the trial's process may have been replaced after a kill
            self._ask_to_stop(trial.number)
            return
        # A resumed trial reports its values from the start of its journal; Optuna would warn of each one.
        if result["step"] not in self._study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(result["value"], result["step"])
            self._sweep.store_study(required=False)
        if math.isfinite(result["value"]) and trial.should_prune():
            self._pruned.add(trial_id)
            self._ask_to_stop(trial.number)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._trials.pop(trial_id)
        result = result or {}
        state = result.get("state")
        run = self._sweep.run(trial.number)
        seconds = result["seconds"] if "seconds" in result else run.seconds()
        values: list[float] = []
        reason: str | None = None
        if state == "LOST":  # a resume of the sweep continues it from its last checkpoint
            self.lost = self.lost or f"trial {trial.number}: {result['reason']}"
            return
        if state == "COMPLETE" and not error:
            ending, values = TrialState.COMPLETE, result["values"]
        elif state == "PRUNED" and trial_id in self._pruned and not error:
            ending = TrialState.PRUNED
        else:
            ending = TrialState.FAIL
            if self._stopped:
                return
            reason = result.get("reason", _KILLED)
        self._endings.append(reason and reason.replace(str(run), "its run"))
        for key, value in {"run": str(run), "seconds": seconds, "reason": reason}.items():
            if value is not None:
                trial.set_user_attr(key, value)
        self._study.tell(trial, values or None, state=ending)
        self._sweep.store_study(required=False)
        self._ended(self._study.get_trials(deepcopy=False)[trial.number])

    def _ask_to_stop(self, number: int) -> None:
        run = self._sweep.run(number)
        if isinstance(run.path, RemotePath) and not run.has_started():  # a request would look like another job's file
            return
        with contextlib.suppress(FileNotFoundError):  # it has not started
            run.request_stop()
