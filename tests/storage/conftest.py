"""A small dataset, read without waiting between tries."""

from pathlib import Path

import pytest

from rayface.data.dataset import Dataset
from rayface.data.writer import write_dataset
from rayface.storage import errors
from tests.storage.failing_os import picture


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_BACK_OFF", (0.0, 0.0))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = [(f"k{i}", i // 2, picture(i)) for i in range(6)]
    return write_dataset(
        tmp_path / "set", samples, name="set", identities="abc", image_size=(16, 16), shard_size=10_000
    )
