"""Private classes of Ray that rayface depends on, by the part of Ray; no other module imports them.

Tested with Ray 2.60. Ray may move or change these classes in any release, so pyproject.toml pins the tested versions;
test a new release with tests/training/recovery, tests/data/streaming and `make faults`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import ray

TRIED_VERSIONS = ("2.60",)


@contextmanager
def tried_versions_named() -> Iterator[None]:
    """Say in an ImportError of the context which versions of Ray were tried."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"ray {ray.__version__}: must be {' or '.join(TRIED_VERSIONS)}, which rayface was tried with: {error}; "
            f"install it with: pip install 'ray[data,default,train,tune]=={TRIED_VERSIONS[-1]}.*'"
        ) from error
