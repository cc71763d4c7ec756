"""Functions compiled by numba."""

from collections.abc import Callable
from typing import Any

from numba import njit

_OPTIONS: dict[str, object] = {
    "nogil": True,
    "error_model": "numpy",
    # Sums may be reordered; NaN and infinity must be preserved, because they are checked for.
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled(function: Callable[..., object]) -> Any:
    """Compile at the first call (takes seconds), without the GIL; cached on disk if possible."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package nor the home directory is writable
        return njit(**_OPTIONS)(function)
