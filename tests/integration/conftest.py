"""One drawn set, and one fork server, for all integration tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayface import report


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set of 20 identities, 12 images each, in several shards, with 100 pairs to verify."""
    from rayface.data.synth import synthesize

    out = tmp_path_factory.mktemp("drawn") / "set"
    synthesize(out, identities=20, images_per_identity=12, seed=1, pairs=100, shard_size=300_000, processes=1)
    return out


@pytest.fixture(scope="session", autouse=True)
def forked(forks: None) -> None:
    """Commands of these tests have forked workers and drivers."""


@pytest.fixture(scope="module", autouse=True)
def small_plots() -> Iterator[None]:
    """Nobody looks at the plots of these runs, and there are hundreds."""
    before, report.PNG_DPI = report.PNG_DPI, 50
    yield
    report.PNG_DPI = before
