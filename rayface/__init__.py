"""Very-large-scale face-recognition training on Ray."""

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
