"""A simulated dataset at 1/40 of WebFace42M's size: what its index costs for an image, and that its stream starts."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rayface.bench.index_cost import Cost
from rayface.bench.scale import ScaleBench, ScaleResult, StreamStart, as_tables, bench_scale
from rayface.bench.simulated import (
    WEBFACE42M_IDENTITIES,
    WEBFACE42M_IMAGES,
    WEBFACE42M_SHARDS,
    Simulated,
    SimulatedFolders,
    simulate,
)
from rayface.data.dataset import open_dataset
from rayface.data.selection import select
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample, ShardRows
from rayface.data.streaming.sample_order import SampleOrder

SIZE = Simulated(images=WEBFACE42M_IMAGES // 40, identities=WEBFACE42M_IDENTITIES // 40, shards=WEBFACE42M_SHARDS // 40)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFolders:
    return simulate(tmp_path_factory.mktemp("scale"), SIZE)


def peak_bytes(work: object) -> int:
    tracemalloc.start()
    try:
        work()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_open_dataset_of_a_million_images_holds_thirty_bytes_each(simulated: SimulatedFolders) -> None:
    """1.5 GB for 42 million images and 2 million identities; tracemalloc does not see Arrow's buffers."""
    for path, column_bytes in ((simulated.dataset, 20), (simulated.selection, 24)):
        peak = peak_bytes(lambda path=path: open_dataset(path))
        assert peak < (column_bytes + 4) * SIZE.images + 200 * SIZE.identities
        assert peak * 40 < 1.5e9


def test_order_of_a_million_images_holds_four_bytes_a_chunk() -> None:
    """Two epochs are held at an epoch's end: 340 MB in a reader of 42 million images and chunks of one."""
    for chunk in (1, 8):
        order = SampleOrder(num_samples=SIZE.images, batch_size=1024, chunk_images=chunk, seed=chunk)
        edge = order.windows_per_epoch
        peak = peak_bytes(lambda order=order, edge=edge: (order.window(edge - 1), order.window(edge)))
        assert peak < 9 * SIZE.images / chunk + 600_000


def test_rows_of_shards_of_a_million_images_hold_two_bytes_each(simulated: SimulatedFolders) -> None:
    shard = open_dataset(simulated.dataset).index.shard
    assert peak_bytes(lambda: ShardRows(shard, SIZE.shards)) < 2 * SIZE.images
    rows = ShardRows(shard, SIZE.shards)
    assert (shard[rows[3]] == 3).all()
    assert rows[3].stop - rows[3].start == np.count_nonzero(shard == 3)


def test_select_of_few_of_a_million_images_copies_no_column(simulated: SimulatedFolders) -> None:
    dataset = open_dataset(simulated.dataset)
    rows = np.arange(0, SIZE.images, 100)
    labels = dataset.index.label[rows]
    peak = peak_bytes(lambda: select(dataset, rows))
    assert peak < 4 * SIZE.images
    left, expected = np.unique(labels, return_inverse=True)
    found = select(dataset, rows)
    assert np.array_equal(found.labels, expected)
    assert found.identities == tuple(dataset.identities[label] for label in left)


def test_simulated_selection_has_every_identity_and_its_images_can_be_read(simulated: SimulatedFolders) -> None:
    dataset = open_dataset(simulated.selection)
    assert dataset.num_images == SIZE.images
    assert dataset.num_classes_with_images == dataset.num_classes == SIZE.identities
    assert len(dataset.shards) == SIZE.shards
    rows = np.random.default_rng(0).integers(SIZE.images, size=50)
    samples = read_samples(dataset.shard_paths(), dataset.index.select(rows))
    assert all(isinstance(sample, Sample) for sample in samples)
    assert np.array_equal(open_dataset(simulated.dataset).index.label, dataset.index.label)


@pytest.mark.long
def test_bench_scale_measures_each_use_of_the_index(tmp_path: Path) -> None:
    size = Simulated(images=2_000, identities=100, shards=4)
    found = bench_scale(ScaleBench(size=size, batch_size=64, chunks=(8,), workers=0, directory=tmp_path))
    assert [cost.what.partition(",")[0] for cost in found.costs] == [
        "open the dataset",
        "open a selection of all its samples",
        "order of the first step",
        "order of a step in the middle",
        "order of 100 windows",
        "order at an epoch's end",
        "open and cut into shards to embed",
    ]
    assert all(cost.seconds > 0 and cost.peak_bytes >= cost.added_bytes >= 0 for cost in found.costs)
    assert not list(tmp_path.iterdir())


def test_tables_of_scale_have_costs_and_starts() -> None:
    cost = Cost(what="open", seconds=1.0, cpu_seconds=0.5, peak_bytes=2_000_000, added_bytes=1_000_000)
    start = StreamStart(step=7, seconds=2.0, private_bytes={"driver": 3_000_000})
    found = ScaleResult(images=10, identities=2, shards=1, costs=[cost], starts=[start])
    (title, costs), (_, starts) = as_tables(found)
    assert title == "10 images, 2 identities, 1 shards"
    assert costs == [{"one core": "open", "seconds": "1.00", "CPU": "0.50", "peak MB": "2", "added MB": "1"}]
    assert starts == [{"from step": "7", "seconds": "2.00", "driver MB": "3"}]


def test_simulate_of_fewer_images_than_identities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images 5, identities 6, shards 1: there must be at least one of each"):
        simulate(tmp_path, Simulated(images=5, identities=6, shards=1))
