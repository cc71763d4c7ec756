"""Typed tree of settings: preset, then file, then `key=value`; unknown keys are refused."""

from rayface.config.curation import CleanConfig, ClusteringConfig, EmbedConfig, PruneConfig
from rayface.config.data import AlignConfig, ConvertConfig, DataConfig, SynthConfig
from rayface.config.evaluation import EvaluateConfig
from rayface.config.loading import dump, load, open_groups, override_texts, with_overrides
from rayface.config.model import BackboneConfig, ExportConfig, HeadConfig
from rayface.config.services import ClusterConfig, TrackingConfig
from rayface.config.training import OptimConfig, ScheduleConfig, TrainConfig
from rayface.config.tree import FIXED, OPERATIONAL, SHOWN, TRAINING, Config, descriptions, flat, to_dict, value_of
from rayface.config.validation import KeyNotSetError, first_error, from_dict, require_keys

__all__ = [
    "FIXED",
    "OPERATIONAL",
    "SHOWN",
    "TRAINING",
    "AlignConfig",
    "BackboneConfig",
    "CleanConfig",
    "ClusterConfig",
    "ClusteringConfig",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "HeadConfig",
    "KeyNotSetError",
    "OptimConfig",
    "PruneConfig",
    "ScheduleConfig",
    "SynthConfig",
    "TrackingConfig",
    "TrainConfig",
    "descriptions",
    "dump",
    "first_error",
    "flat",
    "from_dict",
    "load",
    "open_groups",
    "override_texts",
    "require_keys",
    "to_dict",
    "value_of",
    "with_overrides",
]
