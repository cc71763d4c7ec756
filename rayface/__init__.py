"""Very-large-scale face-recognition training on Ray.

The command line is `rayface --help`. From Python:

    rayface.load_model(path)                    a trained model: images -> embeddings
    rayface.data.dataset.open_dataset(path)     images of tar shards, by index
    rayface.heads                               PartialFC, DCQ, F2C and margins for a training loop of your own
    rayface.backbones                           build_backbone, load_backbone
    rayface.config, rayface.training.trainer    load a config, train(config)
    rayface.evaluation, rayface.curate          protocols; core sets, cleaning, clustering
"""

from typing import TYPE_CHECKING, Any

from rayface.version import VERSION

if TYPE_CHECKING:
    from rayface.models.model_files import load_model

__version__ = VERSION
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """Import torch and the model code only when a model function is requested."""
    if name == "load_model":
        from rayface.models.model_files import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for name in __all__ if name not in globals())]
