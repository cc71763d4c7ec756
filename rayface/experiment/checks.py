"""What can be found wrong with an experiment before its first stage starts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rayface import config as configs
from rayface.backbones.weights import misfit
from rayface.config import Config, parse_paths
from rayface.curate.prune_settings import PruneSettings, check_settings
from rayface.experiment.spec import Stage
from rayface.experiment.verbs import PATHS
from rayface.training.distillation import check_distillation
from rayface.training.parts import build_config_backbone
from rayface.training.trainer import check_settings as check_training
from rayface.training.trainer import rehearse

Models = dict[str, Config]
"""Config of the training that a stage's model is of, by the stage's name."""


def config_of_stage(stage: Stage, options: Mapping[str, Any], output: Path) -> Config:
    """The resolved config of a train stage.

    Raises:
        ValueError: one line.
    """
    file = options.get("config")
    config = configs.load(options.get("preset"), Path(file) if file else None, stage.keys)
    return configs.with_overrides(config, {"train.output": str(output)})


def check_paths(stage: Stage) -> None:
    """Refuse options that name something which is neither there nor the result of a stage.

    Raises:
        ValueError: one line.
    """
    references = stage.references()
    for option in PATHS:
        value = stage.options.get(option)
        if not isinstance(value, str | list) or option in references:
            continue
        for path in value if isinstance(value, list) else parse_paths(option, value):
            if "://" not in path and not Path(path).exists():
                raise ValueError(f"{option}: {path}: does not exist: give a path, or ${{NAME}} of an earlier stage")


def check_train(stage: Stage, config: Config, models: Models) -> None:
    """Refuse a training as the verb would, as far as its inputs are there; models of earlier stages by their config.

    Raises:
        ValueError: one line.
    """
    references = stage.references()
    train, evaluate = config.train, config.evaluate
    if "evaluate.pairs" in references or "evaluate.data" in references:
        evaluate = replace(evaluate, pairs=None, data=None)
    known = replace(config, evaluate=evaluate)
    if "data.train" in references:
        check_training(known)
    else:
        rehearse(known)
    with torch.device("meta"):
        net = build_config_backbone(config)
        for source in references.get("backbone.weights", ()):
            start = build_config_backbone(models[source]).state_dict()
            if wrong := misfit(net.state_dict(), start):
                raise ValueError(f"backbone.weights: of stage {source}: do not fit {config.backbone.name}: {wrong}")
    teachers = [models[name] for name in references.get("train.teacher", ())]
    sizes = [{"embedding_size": t.backbone.embedding_size, "image_size": t.data.image_size} for t in teachers]
    if sizes or train.teacher is None or Path(train.teacher).exists():
        check_distillation(config, sizes[0] if sizes else None)
    else:
        raise ValueError(f"train.teacher: {train.teacher}: does not exist: give a path, or ${{NAME}} of a stage")


def check_prune(options: Mapping[str, Any]) -> None:
    """Refuse settings that the verb would refuse, of those that need nothing else.

    Raises:
        ValueError: one line.
    """
    if (options.get("embeddings") is None) == (options.get("proxy_fraction") is None):
        raise ValueError("embeddings, proxy_fraction: must be one of the two")
    names = ("threshold", "keep", "method", "min_images", "global_weight", "seed")
    given = {name: options[name] for name in names if options.get(name) is not None}
    if "diffprob" not in (options.get("method"), *(options.get("baseline") or ())):
        check_settings(PruneSettings(baselines=tuple(options.get("baseline") or ("random",)), **given))
