"""Studies made by hand, as a sweep leaves them."""

import math
from pathlib import Path

import optuna

from rayface.tuning import spec as specs
from rayface.tuning.search_space import suggest

CONFIGS = Path(__file__).parents[2] / "tune_configs"
PLACES = ["data.train=faces", "evaluate.pairs=pairs.csv", "evaluate.data=faces"]


def ended_trial(value, **params):
    """Return a complete trial of these parameters."""
    return optuna.trial.create_trial(
        value=value,
        params=params,
        distributions={
            key: optuna.distributions.CategoricalDistribution((item,))
            if isinstance(item, str)
            else optuna.distributions.FloatDistribution(0.01, 100)
            for key, item in params.items()
        },
    )


def searched_study(file, *overrides):
    """Return spec, base and study of a sweep file of ours after twelve trials: trial 3 failed, 4 was pruned."""
    spec, base = specs.load(CONFIGS / file, [*PLACES, *overrides])
    study = optuna.create_study(
        directions=[f"{objective.mode}imize" for objective in spec.objectives],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for number in range(12):
        trial = study.ask()
        values = suggest(spec.search, trial)
        found = [0.8 - 0.1 * abs(math.log(values.get("optim.lr", 0.1) / 0.1)), 10.0 + number][: len(spec.objectives)]
        if number == 3:
            trial.set_user_attr("reason", "ValueError: <b>bold</b>")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif number == 4 and len(found) == 1:
            trial.report(0.5, 10)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, found)
    return spec, base, study
