"""A small config and its job, shared by the tests of the room."""

import pytest

from rayface.config import Config, with_overrides
from rayface.plan.memory import Job, job_of
from tests.plan.small_config import SMALL


@pytest.fixture(scope="module")
def small() -> Config:
    return with_overrides(Config(), SMALL)


@pytest.fixture(scope="module")
def job(small: Config) -> Job:
    """What the hand computations below are of."""
    asked = {"train.num_workers": 4, "train.batch_size": 64, "head.sample_rate": 0.1, "train.precision": "bf16"}
    return job_of(with_overrides(small, {**asked, "head.compute_dtype": "fp32"}), 1_000_001, gpu=True)
