"""A dataset as a Ray Dataset on a real Ray: every image once, decoded or as its file."""

from pathlib import Path

import numpy as np
import pytest

from rayface.data import ray_dataset
from rayface.data.dataset import open_dataset
from rayface.ray_tasks import quiet_data

pytestmark = pytest.mark.usefixtures("local_ray")


def test_ray_dataset_holds_every_image_once_decoded_or_as_its_file(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_dataset, "_BLOCK_IMAGES", 50)  # several blocks, the last one short
    dataset = open_dataset(drawn)
    expected = dict(zip(dataset.keys(), dataset.index.label.tolist(), strict=True))
    with quiet_data(debug=False):
        rows = dataset.to_ray(image_size=16).take_all()
        files = dataset.to_ray().take(1)
    assert len(rows) == len(expected) == 240
    assert {row["key"]: row["label"] for row in rows} == expected
    assert {row["image"].shape for row in rows} == {(16, 16, 3)}
    assert np.std([row["image"] for row in rows]) > 10
    assert files[0]["image"].startswith(b"\xff\xd8")
