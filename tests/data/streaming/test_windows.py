"""The reader's side of the stream: windows read and decoded into a block for each node."""

from pathlib import Path

import numpy as np
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import SampleReader
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.windows import rank_windows, read_windows
from rayface.embedding.shard_embedder import read_images
from tests.data.scanned_tars import picture
from tests.data.shard_files import write_tar


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_stream_and_embed_decode_every_format_and_name_corrupt_images(tmp_path: Path, suffix: str) -> None:
    files = []
    for i in range(8):
        data = picture(i, suffix)
        files += [(f"k.{i}.{suffix}", data[:-20] if i == 5 else data), (f"k.{i}.json", b'{"label": %d}' % i)]
    write_tar(tmp_path / "a.tar", files)
    dataset = open_dataset(tmp_path)
    wanted, _ = decode_images([picture(i, suffix) for i in range(8)], 32)
    (chunk,) = read_images(dataset.shards[0].path, dataset.index, 32, 1)
    assert chunk.keys == [f"k.{i}" for i in range(8) if i != 5]
    assert np.array_equal(chunk.images, np.delete(wanted, 5, 0))
    order = SampleOrder(num_samples=8, batch_size=8, chunk_images=1, window_images=8)
    with SampleReader(dataset.shard_paths()) as reader:
        (block,) = read_windows(reader, dataset.index, order, [0], 32, [[0]])
    (part,) = rank_windows(block, order, 0, 1, 32)
    assert np.array_equal(part.images[0], wanted[part.labels[0]])
    for member in (chunk.faults[0].member, part.faults[0].member):
        assert member == f"k.5.{suffix}"
