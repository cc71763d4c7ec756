"""The measurement of the training stream: every road is measured."""

from pathlib import Path

import pytest

from rayface import config as configs
from rayface.bench.stream import StreamBench, as_table, bench_stream
from rayface.data.synth import synthesize


def test_bench_stream_of_a_small_dataset_measures_every_road(tmp_path: Path) -> None:
    synthesize(tmp_path / "faces", identities=8, images_per_identity=8, seed=0, image_size=32)
    values = {"data.train": str(tmp_path / "faces"), "data.window_images": 32, "train.batch_size": 16}
    config = configs.load("debug", overrides=values)
    settings = StreamBench(readers=(1,), simulated=(2,), chunks=(8,), latency=0.001, rounds=1, windows=2)
    found = bench_stream(settings, config)
    simulated = ["simulated readers", "stream, simulated"]
    stores = ["stream, disk", "stream, object store", "stream, copied shards"]
    roads = ["decoder", "webdataset", "stream", *simulated, *stores]
    assert [each.road for each in found] == roads
    assert [each.ratio is None for each in found] == [True, False, False, True, False, True, False, False]
    assert [each.readers for each in found] == [1, 1, 1, 2, 2, 1, 1, 1]
    assert [each.chunk_images for each in found] == [None] * 5 + [8, 8, 8]
    assert all(each.images_per_second > 0 for each in found)
    assert [row["road"] for row in as_table(found)] == roads


@pytest.mark.parametrize(("readers", "simulated", "most"), [((1,), (), 1), ((1, 2), (), 2), ((2,), (8, 4), 8)])
def test_bench_stream_has_cpus_for_the_most_readers(
    readers: tuple[int, ...], simulated: tuple[int, ...], most: int
) -> None:
    assert StreamBench(readers=readers, simulated=simulated).most_readers == most


def test_bench_stream_of_impossible_numbers_raises_one_line() -> None:
    with pytest.raises(ValueError, match=r"readers: \(0,\): must be at least 1"):
        bench_stream(StreamBench(readers=(0,)), configs.load("debug"))
