"""A narrow net whose batch norms have seen data, and its run directory."""

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.models.model_files import save_model
from tests.models.saved_models import SIZE


@pytest.fixture(scope="module")
def backbone():
    """A narrow net whose batch norms have seen data."""
    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=8, image_size=SIZE, width=0.25)
    for _ in range(3):
        net(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


@pytest.fixture
def run(tmp_path, backbone):
    save_model(
        tmp_path / "run",
        backbone,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=SIZE,
        embedding_size=8,
        licence="research only",
        training_digest="abc123",
        metrics={"accuracy_mean": 0.9},
    )
    return tmp_path / "run"
