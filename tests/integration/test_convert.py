"""Converting on a real Ray writes the bytes that threads write."""

from pathlib import Path

import pytest

from rayface.config import load
from rayface.data.conversion import listing
from rayface.data.convert import ConvertSettings, convert
from rayface.data.sources import WebDatasetSource
from rayface.stages.conversion import convert_sources


def test_convert_on_ray_writes_the_bytes_that_threads_write(
    local_ray: None, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "UNIT_IMAGES", 50)
    keys = {"source": drawn, "kind": "webdataset", "out": tmp_path / "ray" / "set", "shard_size": 200_000}
    dataset = convert_sources(load(overrides={f"convert.{key}": str(value) for key, value in keys.items()}))
    settings = ConvertSettings(shard_size=200_000)
    threads = convert(WebDatasetSource(drawn), tmp_path / "threads" / "set", settings)
    assert (dataset.num_images, len(dataset.shards)) == (240, len(threads.shards))
    found = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "set").iterdir()} for name in ("ray", "threads")
    ]
    assert found[0] == found[1]
