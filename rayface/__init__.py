"""Very-large-scale face-recognition training on Ray.

The command line is `rayface --help`. From Python:

    load_model(path)                       a trained model: images -> embeddings
    open_dataset(path)                     images of tar shards; .to_torch(), .to_webdataset(), .to_ray()
    heads, backbones                       for a training loop of your own: PartialFC, DCQ, F2C; build_backbone
    synthesize(path)                       a drawn set to try things on
    load_config(preset, overrides={...})   settings of a job, by config key
    convert, train, tune, embed, prune,    jobs: each takes a config (tune a sweep file) and returns its result;
        cluster, evaluate                  to_pandas() of a result is a table of it

Everything is imported when it is first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayface.version import VERSION

if TYPE_CHECKING:
    from rayface import backbones, heads
    from rayface.config import load as load_config
    from rayface.curate.cluster.cluster import cluster
    from rayface.data.dataset import open_dataset
    from rayface.data.synth import synthesize
    from rayface.embedding.embed import embed
    from rayface.evaluation.evaluate import evaluate
    from rayface.models.model_files import load_model
    from rayface.stages.conversion import convert_sources as convert
    from rayface.stages.proxy import prune
    from rayface.training.trainer import train
    from rayface.tuning.sweep import tune

__version__ = VERSION
__all__ = [
    "__version__",
    "backbones",
    "cluster",
    "convert",
    "embed",
    "evaluate",
    "heads",
    "load_config",
    "load_model",
    "open_dataset",
    "prune",
    "synthesize",
    "train",
    "tune",
]

# OpenCV's own limit, which it reads once when it is loaded: that of rayface.data.decode, for headers read otherwise.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

_MODULES = ("backbones", "heads")
_FUNCTIONS = {
    "cluster": "curate.cluster.cluster:cluster",
    "convert": "stages.conversion:convert_sources",
    "embed": "embedding.embed:embed",
    "evaluate": "evaluation.evaluate:evaluate",
    "load_config": "config:load",
    "load_model": "models.model_files:load_model",
    "open_dataset": "data.dataset:open_dataset",
    "prune": "stages.proxy:prune",
    "synthesize": "data.synth:synthesize",
    "train": "training.trainer:train",
    "tune": "tuning.sweep:tune",
}


def __getattr__(name: str) -> Any:
    """Import PyTorch, Ray and the library only when one of these is first used."""
    if name in _MODULES:
        return import_module(f"rayface.{name}")
    if name in _FUNCTIONS:
        module, _, function = _FUNCTIONS[name].partition(":")
        return getattr(import_module(f"rayface.{module}"), function)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for name in __all__ if name not in globals())]
