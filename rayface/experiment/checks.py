"""Checks of an experiment before its first stage starts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rayface import config as configs
from rayface.backbones.shapes import shapes_only
from rayface.backbones.weights import misfit
from rayface.config import Config, EvaluateConfig, require_keys
from rayface.curate.prune.settings import check_settings as check_pruning
from rayface.evaluation.protocols import configured_protocols
from rayface.experiment.inputs import input_paths
from rayface.experiment.spec import Stage
from rayface.models.model_info import ModelInfo
from rayface.storage import AnyPath, local_copy, on_disk, uri_of
from rayface.training.builders import build_config_backbone, load_start
from rayface.training.distillation import check_distillation
from rayface.training.validate import check_settings as check_training
from rayface.training.validate import dry_run

Models = dict[str, Config]
"""Training config of the model that a stage produces, by the stage's name."""


def config_of(stage: Stage, paths: Mapping[str, str], output: AnyPath) -> Config:
    """Return the resolved config of a stage.

    Args:
        paths: outputs of earlier stages, by name.
        output: output path of the stage.

    Raises:
        ValueError: one line.
    """
    keys = {**stage.with_paths(paths).keys, stage.type.output: uri_of(output)}
    config = configs.load(stage.preset, local_copy(stage.file) if stage.file else None, keys)
    if stage.verb == "prune" and config.prune.proxy_fraction is not None:
        config = configs.load(config.prune.proxy_preset, None, {**keys, "data.train": []})
    return config


def check(stage: Stage, config: Config, models: Models) -> None:
    """Refuse a stage that its verb would refuse, as far as its inputs exist.

    Models of earlier stages are checked by their training config.

    Raises:
        ValueError: one line.
    """
    if stage.verb != "train":
        require_keys(config, *stage.type.required)
    for key, paths in input_paths(stage, config).items():
        for path in paths:
            if "://" not in path and not Path(path).exists():
                raise ValueError(f"{key}: {path}: does not exist: give a path, or ${{NAME}} of an earlier stage")
    if config.convert.to is not None:
        raise ValueError("convert.to: a stage writes a dataset: leave it out, and convert the result by itself")
    if stage.verb == "train":
        _check_train(stage, config, models)
    if stage.verb == "prune":
        _check_prune(stage, config)


def _without(evaluate: EvaluateConfig, keys: Collection[str]) -> EvaluateConfig:
    """Return the settings without inputs, and without those that belong to them."""
    if not keys:
        return evaluate
    default = EvaluateConfig()
    together = ({"pairs", "data"}, {"all_vs_all", "groups", "group_by"})
    dropped = set(keys).union(*(group for group in together if group & set(keys)))
    return replace(evaluate, protocols=(), **{key: getattr(default, key) for key in dropped})


def _check_train(stage: Stage, config: Config, models: Models) -> None:
    references = stage.references()
    configured_protocols(config.evaluate)
    # Inputs of validation that an earlier stage writes do not exist yet.
    of_stages = {key.partition(".")[2] for key in references if key.startswith("evaluate.")}
    known = replace(config, evaluate=_without(config.evaluate, of_stages))
    if "data.train" in references:
        check_training(known)
    else:
        dry_run(known)
    with shapes_only():
        net = build_config_backbone(config)
        for source in references.get("backbone.weights", ()):
            start = build_config_backbone(models[source]).state_dict()
            if wrong := misfit(net.state_dict(), start):
                raise ValueError(f"backbone.weights: of stage {source}: do not fit {config.backbone.name}: {wrong}")
    if "backbone.weights" not in references and config.backbone.weights is not None:
        load_start(build_config_backbone(config), config)
    _check_teacher(references.get("train.teacher", []), config, models)


def _check_teacher(sources: Sequence[str], config: Config, models: Models) -> None:
    """Check that the teacher fits the student, by the config that trains it or by its file if it exists."""
    teacher = next((models[name] for name in sources if name in models), None)
    if teacher is None and (not sources or Path(str(config.train.teacher)).exists()):
        check_distillation(config)
        return
    fits = teacher or config  # sizes of a model that no stage trains are unknown until it is exported
    backbone, size = fits.backbone, fits.data.image_size
    info = ModelInfo(backbone=backbone.name, embedding_size=backbone.embedding_size, image_size=size)
    check_distillation(config, info)


def _check_prune(stage: Stage, config: Config) -> None:
    if (config.prune.embeddings is None) == (config.prune.proxy_fraction is None):
        raise ValueError("prune.embeddings, prune.proxy_fraction: exactly one of the two must be set")
    if "prune.head" in stage.references():  # the run is an earlier stage, which may not have run yet
        named = {config.prune.method, *config.prune.baselines} - {"diffprob"}
        config = replace(
            config, prune=replace(config.prune, head=None, method=next(iter(named), "random"), baselines=())
        )
        if config.prune.threshold is not None and config.prune.method == "random":
            return
    check_pruning(config)
    if config.prune.proxy_fraction is not None:
        on_disk(str(config.prune.out), "prune.proxy_fraction, output")
