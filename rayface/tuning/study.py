"""The Optuna study of a sweep: storage, sampler and pruner."""

import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from rayface.credentials import mask
from rayface.tuning.search_space import grid
from rayface.tuning.spec import Spec, SweepConfig


def open_study(spec: Spec, name: str, storage: str, *, total_steps: int, resume: bool = False) -> optuna.Study:
    """Create or open a study.

    Args:
        name: name of the study in its storage.
        storage: SQLAlchemy URI; optuna-dashboard takes the same.
        total_steps: training steps of a trial, for hyperband.
        resume: require that the study exists; a new one would repeat all trials.

    Raises:
        ValueError: the storage cannot be opened, or does not hold the study to resume.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        rdb = optuna.storages.RDBStorage(storage)
        if resume and name not in optuna.get_all_study_names(rdb):
            raise LookupError(f"it holds no study {name}: set the storage that the sweep was started with")
        if not resume:
            _delete_unused(rdb, name)
        study = optuna.create_study(
            storage=rdb,
            study_name=name,
            load_if_exists=True,
            directions=[StudyDirection[f"{objective.mode.upper()}IMIZE"] for objective in spec.objectives],
            pruner=_pruner(spec.sweep, total_steps),
        )
    except Exception as error:  # SQLAlchemy's drivers raise errors of their own
        text = mask(" ".join(str(error).split()))[:300]
        raise ValueError(f"sweep.storage: the study cannot be opened: {type(error).__name__}: {text}") from error
    study.sampler = _sampler(spec.sweep, len(study.get_trials(deepcopy=False)))
    if spec.sweep.sampler == "grid":
        for point in grid(spec.search):
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def _delete_unused(storage: optuna.storages.RDBStorage, name: str) -> None:
    """Delete a study without trials, whose objectives and grid may be those of an edited sweep file."""
    if name in optuna.get_all_study_names(storage) and not started(optuna.load_study(study_name=name, storage=storage)):
        optuna.delete_study(study_name=name, storage=storage)


def interrupted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that were running when the sweep was interrupted."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def started(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have started; enqueued ones of a grid are not among them."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def num_new_trials(spec: Spec, study: optuna.Study) -> int:
    """Return the number of trials that have not started yet."""
    new = spec.sweep.trials - len(started(study))
    if spec.sweep.sampler == "grid":
        new = min(new, len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,))))
    return max(0, new)


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best trial; with several objectives the Pareto front, ordered by the first objective."""
    if not any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)):
        return []
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    if len(study.directions) == 1:
        return [study.best_trial]
    return sorted(study.best_trials, key=lambda trial: (sign * trial.values[0], trial.number))


def _sampler(sweep: SweepConfig, num_trials: int) -> BaseSampler:
    # A resumed sweep must not sample the same points again.
    seed = int(np.random.SeedSequence([sweep.seed, num_trials]).generate_state(1)[0])
    if sweep.sampler == "tpe":
        # constant_liar counts running trials as bad ones, so that concurrent trials differ.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    if sweep.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if sweep.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(sweep: SweepConfig, total_steps: int) -> optuna.pruners.BasePruner:
    if sweep.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=sweep.min_steps, reduction_factor=sweep.reduction_factor
        )
    if sweep.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=sweep.min_steps, max_resource=total_steps, reduction_factor=sweep.reduction_factor
        )
    if sweep.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=sweep.min_steps)
    return optuna.pruners.NopPruner()
