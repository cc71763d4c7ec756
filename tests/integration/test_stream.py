"""The stream on a real Ray Data: every rank gets its rows of the order's batches, corrupt images are counted."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util import placement_group, remove_placement_group

from rayface.bench.slow_store import slow_store
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import SampleReader
from rayface.data.streaming import dealer, read_tasks
from rayface.data.streaming.batches import Batch, train_batches
from rayface.data.streaming.dealer import deal
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.data.streaming.label_groups import group_by_label
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.storage import DataError

pytestmark = pytest.mark.usefixtures("local_ray")


def read(
    dataset: Dataset, order: SampleOrder, start: int, stop: int, nodes: Sequence[str] = ("a",)
) -> list[list[Batch]]:
    """All batches of every rank, read at the same time as training would; `nodes` says where each rank is."""
    world_size = len(nodes)
    dealt = deal(
        share(dataset, grouped=order.needs_groups),
        order,
        image_size=56,
        world_size=world_size,
        start=start,
        stop=stop,
        readers=2,
        reserved={},
    )
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: list(train_batches(dealt, rank, node=nodes[rank])), range(world_size)))


@pytest.mark.parametrize(
    ("nodes", "block_images", "turns"),
    [("a", 1, 9), ("ab", 1, 9), ("bab", 1, 2), ("ab", 60, 9), ("aabb", 512, 9)],
    ids=str,
)
def test_stream_on_any_workers_and_nodes_gives_the_ordered_global_batch(drawn, monkeypatch, nodes, block_images, turns):
    monkeypatch.setattr(dealer, "_BLOCK_IMAGES", block_images)
    monkeypatch.setattr(dealer, "_TURNS_PER_EXECUTION", turns)
    dataset = open_dataset(drawn)
    order = SampleOrder(num_samples=len(dataset.index), batch_size=12, seed=4, window_images=60)
    start, stop = 7, 2 * order.steps_per_epoch - 3  # from within a window into the second epoch
    ranks = read(dataset, order, start, stop, nodes)
    assert all([b.step for b in batches] == list(range(start, stop)) for batches in ranks)
    for parts in zip(*ranks, strict=True):
        ids = order.batch(parts[0].step)
        labels = np.concatenate([part.labels.numpy() for part in parts])
        assert np.array_equal(labels, dataset.index.label[ids])
        assert {part.images.shape[1:] for part in parts} == {(56, 56, 3)}
        assert [part.rows.stop for part in parts][-1] == order.batch_size


def test_stream_writes_no_line_into_the_log_of_ray_for_a_turn(drawn, monkeypatch):
    monkeypatch.setattr(dealer, "_BLOCK_IMAGES", 1)
    log = Path(ray._private.worker._global_node.get_session_dir_path(), "logs", "ray-data", "ray-data.log")
    before = len(log.read_text().splitlines()) if log.exists() else 0
    order = SampleOrder(num_samples=len(open_dataset(drawn).index), batch_size=12, window_images=12)
    assert len(read(open_dataset(drawn), order, 0, 120)[0]) == 120
    assert len(log.read_text().splitlines()) - before < 30  # of the execution, and of the first task of a process


def test_stream_of_a_store_with_copies_of_its_shards_gives_the_same_batches(drawn, tmp_path):
    dataset = open_dataset(drawn)
    order = SampleOrder(num_samples=len(dataset.index), batch_size=12, chunk_images=1, window_images=60)
    (wanted,) = read(dataset, order, 0, 3 * order.steps_per_epoch)

    class Samples(SharedSamples):
        def reader(self):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RAYFACE_CACHE", str(tmp_path))
                return super().reader()

    with slow_store(dataset.shard_paths(), 0.0) as uris:
        shards = [replace(shard, path=uri) for shard, uri in zip(dataset.shards, uris, strict=True)]
        samples = Samples(**vars(share(replace(dataset, shards=tuple(shards)), cache_size=1 << 30)))
        dealt = deal(
            samples,
            order,
            image_size=56,
            world_size=1,
            start=0,
            stop=3 * order.steps_per_epoch,
            readers=2,
            reserved={},
        )
        for found, own in zip(train_batches(dealt, 0), wanted, strict=True):
            assert found.images.equal(own.images)
            assert found.labels.equal(own.labels)
        deadline = time.monotonic() + 60
        while not all((tmp_path / "shards" / str(shard.sha256)).exists() for shard in shards):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def small_turns(monkeypatch):
    """A function: deal turns of one batch of 12 each; `on_read` is called in a reader before it reads a turn."""

    def dealt(dataset, on_read, *, readers, stop):
        class Reader(SampleReader):
            def read(self, index):
                on_read()
                return super().read(index)

        class Samples(SharedSamples):
            def reader(self):
                return Reader(super().reader()[0].shards), self.get()[1], None

        monkeypatch.setattr(dealer, "_BLOCK_IMAGES", 1)
        order = SampleOrder(num_samples=len(dataset.index), batch_size=12, window_images=12)
        shared = share(dataset)
        samples = Samples(shared.paths, shared.columns)
        options = {"image_size": 56, "world_size": 1, "reserved": {}, "early": False, "local": True}
        return deal(samples, order, start=0, stop=stop, readers=readers, **options)

    return dealt


def test_stream_whose_ranks_hold_all_their_turns_still_has_every_reader_at_work(drawn, tmp_path, small_turns):
    dealt = small_turns(open_dataset(drawn), lambda: (tmp_path / str(time.monotonic_ns())).touch(), readers=3, stop=20)
    batches = train_batches(dealt, 0)
    next(batches)  # holds a turn, two are requested ahead
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3 + 3:
        assert time.monotonic() < deadline, len(list(tmp_path.iterdir()))
        time.sleep(0.05)
    assert len(list(batches)) == 19


def test_stream_whose_reader_is_killed_reads_its_turn_again(drawn, tmp_path, small_turns):
    def die_once():
        if len(os.listdir(tmp_path)) >= 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (tmp_path / str(time.monotonic_ns())).touch()

    dataset = open_dataset(drawn)
    dealt = small_turns(dataset, die_once, readers=2, stop=12)
    labels = [batch.labels.tolist() for batch in train_batches(dealt, 0)]
    order = dealt.stream.order
    assert labels == [dataset.index.label[order.batch(step)].tolist() for step in range(12)]
    assert (tmp_path / "killed").exists()


def test_stream_has_a_process_for_its_first_reader_before_a_rank_asks(drawn, tmp_path, monkeypatch):
    started = tmp_path / "started"
    monkeypatch.setattr(read_tasks, "_nothing", lambda: started.touch())
    dataset = open_dataset(drawn)
    order = SampleOrder(num_samples=len(dataset.index), batch_size=12)
    dealt = deal(share(dataset), order, image_size=56, world_size=1, start=0, stop=2, readers=1, reserved={})
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [batch.step for batch in train_batches(dealt, 0)] == [0, 1]


@pytest.mark.parametrize("with_instances", [False, True])
def test_stream_of_pairs_on_two_nodes_gives_each_rank_both_images_of_its_rows(drawn, with_instances):
    dataset = open_dataset(drawn)
    groups = group_by_label(dataset.index.label, dataset.num_classes)
    order = PairOrder(
        num_samples=len(dataset.index),
        num_identities=dataset.num_classes_with_images,
        batch_size=7,
        window_images=60,
        with_instances=with_instances,
    )
    start, stop = 5, 2 * order.steps_per_epoch - 3
    ranks = read(dataset, order, start, stop, "ab")
    assert all([b.step for b in batches] == list(range(start, stop)) for batches in ranks)
    for parts in zip(*ranks, strict=True):
        labels = np.concatenate([part.labels.numpy() for part in parts])
        assert np.array_equal(labels, dataset.index.label[order.batch(parts[0].step, groups)])
        assert [len(part.images) for part in parts] == [6, 8]


def damaged_copy(drawn: Path, folder: Path, at: list[int], dataset: Dataset) -> Path:
    """A copy of the set with bytes of some samples' JPEGs overwritten."""
    shutil.copytree(drawn, folder)
    for i in at:
        shard = folder / Path(dataset.shards[dataset.index.shard[i]].path).name
        with shard.open("r+b") as file:
            file.seek(int(dataset.index.offset[i]) + 512)
            file.write(b"\0" * 64)
    return folder


def test_stream_with_corrupt_images_replaces_counts_and_names_them(drawn, tmp_path):
    copy = damaged_copy(drawn, tmp_path / "set", [3, 50], open_dataset(drawn))
    dataset = open_dataset(copy)
    order = SampleOrder(num_samples=len(dataset.index), batch_size=12, window_images=60)
    (batches,) = read(dataset, order, 0, 2 * order.steps_per_epoch)
    counter = FaultCounter(len(dataset.index), 0.01)
    new = [fault for batch in batches for fault in counter.add(batch.faults)]
    assert counter.num_lost == len(new) == 2  # each epoch meets them; each counts once
    keys = dataset.keys()
    assert {fault.member for fault in new} == {f"{keys[3]}.jpg", f"{keys[50]}.jpg"}
    assert {fault.offset for fault in new} == {int(dataset.index.offset[i]) for i in (3, 50)}
    for batch in batches:
        assert all(image.float().std() > 1 for image in batch.images)  # none is black
        assert len(batch.labels) == 12
    with pytest.raises(DataError, match=r"2 of 240 images are corrupt, more than data.max_corrupt_fraction=0.001"):
        FaultCounter(240, 0.001).add(new)


def test_stream_with_a_missing_shard_stops_every_rank_with_its_cause(drawn, tmp_path):
    dataset = open_dataset(shutil.copytree(drawn, tmp_path / "set"))
    Path(dataset.shards[-1].path).unlink()
    order = SampleOrder(num_samples=len(dataset.index), batch_size=24, window_images=240)
    dealt = deal(share(dataset), order, image_size=56, world_size=2, start=0, stop=10, readers=1, reserved={})

    def error_of(rank: int) -> Exception:
        with pytest.raises(DataError) as caught:
            list(train_batches(dealt, rank))
        return caught.value

    with ThreadPoolExecutor(2) as pool:
        for error in pool.map(error_of, range(2)):
            assert str(error).startswith(f"{dataset.shards[-1].path}: cannot be read (")
            assert "\n" not in str(error)


@pytest.mark.parametrize("needed", ["early", "later"])
def test_stream_with_early_steps_stops_where_a_missing_shard_is_needed(drawn, tmp_path, monkeypatch, needed):
    monkeypatch.setattr(dealer, "_BLOCK_IMAGES", 1)
    dataset = open_dataset(shutil.copytree(drawn, tmp_path / "set"))
    order = SampleOrder(num_samples=len(dataset.index), batch_size=2, window_images=240)
    early = set(dataset.index.shard[order.batch(0)].tolist())
    missing = min(early) if needed == "early" else min(set(range(len(dataset.shards))) - early)
    Path(dataset.shards[missing].path).unlink()
    dealt = deal(share(dataset), order, image_size=56, world_size=2, start=0, stop=10, readers=1, reserved={})

    def taken(rank: int) -> list[int]:
        batches, steps = train_batches(dealt, rank, node="ab"[rank]), []
        with pytest.raises(DataError, match="cannot be read"):
            steps.extend(batch.step for batch in batches)
        return steps

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(taken, range(2))) == [[] if needed == "early" else [0]] * 2


@pytest.fixture
def held() -> Iterator[tuple[float, Callable[[], None]]]:
    """Hold every CPU of the cluster, as the workers of a training do; return their number, and how to release them."""
    cpus = ray.cluster_resources()["CPU"]
    group = placement_group([{"CPU": 1}] * int(cpus))
    ray.get(group.ready(), timeout=60)
    yield cpus, lambda: remove_placement_group(group)
    remove_placement_group(group)


@pytest.mark.parametrize("told", [True, False], ids=["told of them", "not told"])
def test_stream_beside_workers_with_every_cpu_waits_only_if_it_is_not_told_of_them(
    drawn: Path, held: tuple[float, Callable[[], None]], told: bool
) -> None:
    dataset, (cpus, release) = open_dataset(drawn), held
    order = SampleOrder(num_samples=len(dataset.index), batch_size=24, window_images=240)
    reserved = {"CPU": cpus} if told else {}
    dealt = deal(share(dataset), order, image_size=56, world_size=1, start=0, stop=5, readers=1, reserved=reserved)
    with ThreadPoolExecutor(1) as pool:
        batches = pool.submit(lambda: list(train_batches(dealt, 0)))
        try:
            if told:
                assert [batch.step for batch in batches.result(timeout=120)] == list(range(5))
            else:  # workers wait for the readers, and readers for the workers' CPUs
                with pytest.raises(TimeoutError):
                    batches.result(timeout=5)
        finally:
            release()
        assert [batch.step for batch in batches.result(timeout=120)] == list(range(5))
