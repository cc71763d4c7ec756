"""The cluster that all scenarios share."""

from collections.abc import Iterator

import pytest

from tests.faults.fixture import TestCluster


@pytest.fixture(scope="module")
def cluster(forks: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    """A cluster of this folder's own; a module's, so that it is gone before others start a Ray."""
    cluster = TestCluster(tmp_path_factory.mktemp("faults"))
    yield cluster
    cluster.close()
