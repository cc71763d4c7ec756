"""Progress of the running trials of a sweep, from their journals."""

import logging
import time
from datetime import timedelta

import optuna
from optuna.trial import TrialState

from rayface.training.run_view import RunView, RunWatcher
from rayface.tuning.sweep_directory import SweepDirectory

_SECONDS = 30.0
logger = logging.getLogger(__name__)


class TrialProgress:
    """Logs a line about every running trial, at most every 30 seconds; only reads."""

    def __init__(self, directory: SweepDirectory, study: optuna.Study) -> None:
        self._directory, self._study = directory, study
        self._watchers: dict[int, RunWatcher] = {}
        self._next = time.monotonic() + _SECONDS

    def show(self) -> None:
        """Log the lines if it is time."""
        if time.monotonic() < self._next:
            return
        try:
            for line in self.lines():
                logger.info("%s", line)
        except Exception as error:  # a fault of the disk or of Optuna's storage here must not end a sweep
            logger.warning("the trials' progress cannot be read: %s", error)
        self._next = time.monotonic() + _SECONDS

    def lines(self) -> list[str]:
        """Return a line about every trial that runs."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [f"trial {trial.number}: {self._state(trial.number)}" for trial in running]

    def _state(self, number: int) -> str:
        run = self._directory.run(number)
        if number not in self._watchers:
            if not run.has_started():
                return "starting"
            self._watchers[number] = RunWatcher(run=run, tail=run.journal_tail())
        return _said(self._watchers[number].read())


def _said(view: RunView) -> str:
    if not view.step:
        return view.state
    total = "" if view.total_steps is None else f" of {view.total_steps:,}"
    parts = [f"step {view.step:,}{total}"]
    if view.losses:
        parts.append(f"loss {view.losses[-1]:.3f}")
    if view.accuracies:
        parts.append(f"accuracy {view.accuracies[-1][1]:.2%}")
    if view.state != "training":
        parts.append(view.state)
    elif view.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(view.seconds_left))} left")
    return ", ".join(parts)
