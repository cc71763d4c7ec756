"""Fixtures of the room: threads, a run with a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rayface.backbones.registry import BACKBONES
from tests.training.small_run import config_of, training


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give threads and registry back as they were: a worker takes its share of the cores."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    BACKBONES.pop("plain", None)


@pytest.fixture(scope="module")
def started_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of step 0."""
    run = tmp_path_factory.mktemp("run")
    made = training(run, config_of())
    made.save_checkpoint()
    made.checkpoints.wait()
    return run
