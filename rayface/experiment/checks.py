"""What can be found wrong with an experiment before its first stage starts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rayface import config as configs
from rayface.backbones.weights import misfit
from rayface.config import Config
from rayface.curate.prune.settings import PruneSettings, check_exclude, check_head, check_settings
from rayface.experiment.inputs import input_paths
from rayface.experiment.spec import Stage
from rayface.storage import normalise
from rayface.training.builders import build_config_backbone, load_start
from rayface.training.distillation import check_distillation
from rayface.training.trainer import check_settings as check_training
from rayface.training.trainer import dry_run

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


def proxy_of_stage(stage: Stage, options: Mapping[str, Any]) -> Config:
    """The resolved config of the proxy that a prune stage trains.

    Raises:
        ValueError: one line.
    """
    return configs.with_overrides(configs.load(options["proxy_preset"], overrides=stage.keys), {"data.train": []})


def check_paths(stage: Stage) -> None:
    """Refuse options that name something which is neither there nor the result of a stage.

    Raises:
        ValueError: one line.
    """
    for option, paths in input_paths(stage, {} if stage.verb == "train" else None).items():
        for path in map(normalise, paths):
            if "://" not in path and not Path(path).exists():
                raise ValueError(f"{option}: {path}: does not exist: give a path, or ${{NAME}} of an earlier stage")


def check_train(stage: Stage, config: Config, models: Models) -> None:
    """Refuse a training as the verb would, as far as its inputs are there; models of earlier stages by their config.

    Raises:
        ValueError: one line.
    """
    references = stage.references()
    evaluate = config.evaluate
    if ("evaluate.pairs" in references or "evaluate.data" in references) and evaluate.pairs and evaluate.data:
        evaluate = replace(evaluate, pairs=None, data=None)
    known = replace(config, evaluate=evaluate)
    if "data.train" in references:
        check_training(known)
    else:
        dry_run(known)
    with torch.device("meta"):
        net = build_config_backbone(config)
        for source in references.get("backbone.weights", ()):
            start = build_config_backbone(models[source]).state_dict()
            if wrong := misfit(net.state_dict(), start):
                raise ValueError(f"backbone.weights: of stage {source}: do not fit {config.backbone.name}: {wrong}")
    if "backbone.weights" not in references and config.backbone.weights is not None:
        load_start(build_config_backbone(config), config)
    _check_teacher(references.get("train.teacher", []), config, models)


def _check_teacher(sources: Sequence[str], config: Config, models: Models) -> None:
    """Hold the teacher against the student: its training's config, or its file, where there is one of them."""
    teacher = next((models[name] for name in sources if name in models), None)
    if teacher is None and (not sources or Path(str(config.train.teacher)).exists()):
        check_distillation(config)
        return
    fits = teacher or config  # of an export to come, of a model that no stage trains, the sizes are seen later
    check_distillation(config, {"embedding_size": fits.backbone.embedding_size, "image_size": fits.data.image_size})


def check_prune(options: Mapping[str, Any]) -> None:
    """Refuse settings that the verb would refuse, of those that need nothing else.

    Raises:
        ValueError: one line.
    """
    if (options.get("embeddings") is None) == (options.get("proxy_fraction") is None):
        raise ValueError("embeddings, proxy_fraction: must be one of the two")
    check_exclude(options.get("exclude"), options.get("above"))
    check_head(options.get("head"), options.get("method") or "", options.get("baseline") or ())
    names = ("threshold", "keep", "method", "min_images", "global_weight", "seed")
    given = {name: options[name] for name in names if options.get(name) is not None}
    if "diffprob" not in (options.get("method"), *(options.get("baseline") or ())):
        check_settings(PruneSettings(baselines=tuple(options.get("baseline") or ("random",)), **given))
