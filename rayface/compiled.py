"""Functions compiled by numba."""

from collections.abc import Callable
from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # sums may be taken in any order; NaN and infinity stay what they are, for they must be found
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call (seconds), without the GIL; kept on disk where there is a place for it."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither the package nor the home directory can be written to
        return njit(**_OPTIONS)(function)
