"""One local Ray and one drawn set for all integration tests; each start costs seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray whose workers also know the backbone `plain`: no batch statistics, no dropout."""
    import ray

    def register_plain() -> None:
        from torch import nn

        from rayface.backbones import BACKBONES

        def plain(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
            del width, dropout
            return nn.Sequential(
                nn.Conv2d(3, 8, 5, 4, 2),
                nn.PReLU(8),
                nn.Flatten(),
                nn.Linear(8 * (image_size // 4) ** 2, embedding_size),
            )

        BACKBONES["plain"] = plain

    register_plain()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": register_plain},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set of 20 identities, 12 images each, in several shards, with 100 pairs to verify."""
    from rayface.data.synth import synthesize

    out = tmp_path_factory.mktemp("drawn") / "set"
    synthesize(out, identities=20, images_per_identity=12, seed=1, pairs=100, shard_size=300_000, processes=1)
    return out
