"""One local Ray and one drawn set for all integration tests; each start costs seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with more CPUs than the machine has, as nothing here depends on speed."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set of 20 identities, 12 images each, in several shards, with 100 pairs to verify."""
    from rayface.data.synth import synthesize

    out = tmp_path_factory.mktemp("drawn") / "set"
    synthesize(out, identities=20, images_per_identity=12, seed=1, pairs=100, shard_size=300_000, processes=1)
    return out
