"""The tree of all groups, and views of it: nested, flat by dotted key, and the description of every key."""

import functools
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config.curation import CleanConfig, ClusteringConfig, EmbedConfig, PruneConfig
from rayface.config.data import AlignConfig, ConvertConfig, DataConfig, SynthConfig
from rayface.config.evaluation import EvaluateConfig
from rayface.config.model import BackboneConfig, ExportConfig, HeadConfig
from rayface.config.services import ClusterConfig, TrackingConfig
from rayface.config.training import OptimConfig, ScheduleConfig, TrainConfig
from rayface.config_fields import STRICT, Mark, Operational, Shown, field_texts, marked
from rayface.values import Tree


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    name: Shown[Operational[Annotated[str, Field(min_length=1)]]] = "run"
    """Prefix of run directories and MLflow runs."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: Operational[TrackingConfig] = TrackingConfig()
    synth: SynthConfig = SynthConfig()
    convert: ConvertConfig = ConvertConfig()
    align: AlignConfig = AlignConfig()
    embed: EmbedConfig = EmbedConfig()
    clean: CleanConfig = CleanConfig()
    prune: PruneConfig = PruneConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    export: ExportConfig = ExportConfig()
    cluster: Operational[ClusterConfig] = ClusterConfig()


TRAINING = ("name", "data", "backbone", "head", "optim", "schedule", "train", "evaluate", "tracking")
"""The fields of Config that a training run uses: its config.yaml, checkpoints and MLflow parameters hold these."""
FIXED = frozenset(marked(Config, Mark.FIXED))
OPERATIONAL = frozenset(marked(Config, Mark.OPERATIONAL))
SHOWN = tuple(marked(Config, Mark.SHOWN))
GROUPS: dict[str, type[Any]] = {f.name: type(f.default) for f in fields(Config) if is_dataclass(f.default)}
"""The class of every group of keys."""


def to_dict(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Return a nested dict of YAML types, of the given groups such as TRAINING, or of all."""
    return {k: _plain(v) for k, v in asdict(config).items() if groups is None or k in groups}


def flat(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Return the values by dotted key, in the order of the tree, of the given groups such as TRAINING, or of all."""
    out: Tree = {}
    for key, value in to_dict(config, groups).items():
        if isinstance(value, dict):
            out.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            out[key] = value
    return out


def value_of(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in the result of `to_dict`."""
    for part in key.split("."):
        tree = tree[part]
    return tree


@functools.cache
def descriptions() -> dict[str, str]:
    """Return the description of every key: the docstring below its field."""
    modules = {sys.modules[kind.__module__] for kind in (Config, *GROUPS.values())}
    texts = {kind: own for module in modules for kind, own in field_texts(module).items()}
    found: dict[str, str] = {}
    for field in fields(Config):
        if field.name in GROUPS:
            found |= {f"{field.name}.{name}": text for name, text in texts[GROUPS[field.name].__name__].items()}
        else:
            found[field.name] = texts["Config"][field.name]
    return found


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
