"""The reader's side of the stream: windows read and decoded into a block for each node."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import SampleReader
from rayface.data.streaming.label_groups import group_by_label
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder, rank_rows
from rayface.data.streaming.windows import error_block, rank_windows, read_windows
from rayface.data.synth import synthesize
from rayface.embedding.shard_embedder import read_images
from rayface.storage import DataError, StorageError
from tests.data.scanned_tars import picture
from tests.data.shard_files import write_tar


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_stream_and_embed_decode_every_format_and_name_corrupt_images(tmp_path: Path, suffix: str) -> None:
    files = []
    for i in range(8):
        data = picture(i, suffix)
        files += [(f"k.{i}.json", b'{"label": %d}' % i), (f"k.{i}.{suffix}", data[:-20] if i == 5 else data)]
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
    for fault in (chunk.faults[0], part.faults[0]):
        assert (fault.member, fault.offset) == (f"k.5.{suffix}", dataset.index.offset[5] + 1024)  # behind its label


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    files = [m for i in range(12) for m in ((f"k{i}.png", picture(i, "png")), (f"k{i}.cls", b"%d" % i))]
    write_tar(tmp_path / "a.tar", files)
    return open_dataset(tmp_path)


ORDER = SampleOrder(num_samples=12, batch_size=4, chunk_images=2, window_images=8)


@pytest.mark.parametrize("nodes", [[[0, 1, 2]], [[0, 2], [1]], [[2], [0], [1]]])
def test_windows_read_for_any_nodes_give_each_rank_its_rows_of_the_sample_order(
    dataset: Dataset, nodes: list[list[int]]
) -> None:
    wanted, _ = decode_images([picture(i, "png") for i in range(12)], 32)
    with SampleReader(dataset.shard_paths()) as reader:
        blocks = list(read_windows(reader, dataset.index, ORDER, [0, 1], 32, nodes))
    assert [len(block) for block in blocks] == [1] * len(nodes)
    for block, ranks in zip(blocks, nodes, strict=True):
        for rank in ranks:
            first, last = rank_windows(block, ORDER, rank, 3, 32)
            assert (first.window, last.window, first.labels.shape[0], last.labels.shape[0]) == (0, 1, 2, 1)
            for part, steps in ((first, range(2)), (last, range(2, 3))):
                rows = np.stack([ORDER.batch(step)[rank_rows(4, rank, 3)] for step in steps])
                assert part.labels.tolist() == rows.tolist()
                assert np.array_equal(part.images, wanted[rows])
                assert part.faults == ()


@pytest.mark.parametrize("nodes", [[[0, 1, 2]], [[0, 2], [1]]])
@pytest.mark.parametrize("early", [range(0, 1), range(1, 3)])
def test_early_steps_come_first_and_their_window_is_whole_and_the_same(
    dataset: Dataset, nodes: list[list[int]], early: range
) -> None:
    order = SampleOrder(num_samples=12, batch_size=4, chunk_images=2, window_images=12)
    with SampleReader(dataset.shard_paths()) as reader:
        plain = list(read_windows(reader, dataset.index, order, [0], 32, nodes))
        blocks = list(read_windows(reader, dataset.index, order, [0], 32, nodes, early=early))
    assert blocks[len(nodes) :] == plain
    for soon, whole, ranks in zip(blocks, plain, nodes, strict=False):
        for rank in ranks:
            (first,), (part,) = (rank_windows(block, order, rank, 3, 32) for block in (soon, whole))
            assert (first.window, first.place, first.faults, part.place) == (0, early.start, (), 0)
            assert np.array_equal(first.images, part.images[early.start : early.stop])
            assert np.array_equal(first.labels, part.labels[early.start : early.stop])


@pytest.mark.parametrize("corrupt_step", [0, 2])
def test_early_steps_with_a_corrupt_image_wait_for_their_window(
    dataset: Dataset, tmp_path: Path, corrupt_step: int
) -> None:
    order = SampleOrder(num_samples=12, batch_size=4, chunk_images=2, window_images=12)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    offset = int(dataset.index.offset[order.batch(corrupt_step)[1]])
    content[offset + 520 : offset + 600] = bytes(80)
    (tmp_path / "a.tar").write_bytes(content)
    with SampleReader(dataset.shard_paths()) as reader:
        (plain,) = read_windows(reader, dataset.index, order, [0], 32, [[0]])
        soon, whole = read_windows(reader, dataset.index, order, [0], 32, [[0]], early=range(1))
    assert whole == plain
    assert len(rank_windows(whole, order, 0, 1, 32)[0].faults) == 1
    assert len(rank_windows(soon, order, 0, 1, 32)) == (corrupt_step != 0)


@pytest.mark.parametrize("early", [None, range(1)])
def test_corrupt_images_are_listed_by_offset_and_replaced_by_all_valid_ones_in_turn(
    dataset: Dataset, tmp_path: Path, early: range | None
) -> None:
    order = SampleOrder(num_samples=12, batch_size=4, chunk_images=1, window_images=12)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    for offset in dataset.index.offset[2:].tolist():
        content[offset + 520 : offset + 600] = bytes(80)
    (tmp_path / "a.tar").write_bytes(content)
    with SampleReader(dataset.shard_paths()) as reader:
        *_, block = read_windows(reader, dataset.index, order, [0], 32, [[0]], early=early)
    (part,) = rank_windows(block, order, 0, 1, 32)
    assert [fault.member for fault in part.faults] == [f"k{i}.png" for i in range(2, 12)]
    wanted, _ = decode_images([picture(i, "png") for i in range(2)], 32)
    assert np.array_equal(part.images, wanted[part.labels])
    assert np.bincount(part.labels.ravel()).min() > 3


def test_corrupt_images_of_windows_read_together_are_replaced_and_named_in_their_own_window(tmp_path: Path) -> None:
    first, second = ORDER.window(0).ravel(), ORDER.window(1).ravel()
    corrupt = {int(image) for image in (first.min(), first.max(), second[0])}
    members = []
    for i in range(12):
        data = picture(i, "png")
        members.append([(f"k{i}.png", data[:-40] if i in corrupt else data), (f"k{i}.cls", b"%d" % i)])
    write_tar(tmp_path / "a.tar", [member for pair in members[:9] for member in pair])
    write_tar(tmp_path / "b.tar", [member for pair in members[9:] for member in pair])
    dataset = open_dataset(tmp_path)
    with SampleReader(dataset.shard_paths()) as reader:
        (block,) = read_windows(reader, dataset.index, ORDER, [0, 1], 32, [[0]])
    wanted, _ = decode_images([picture(i, "png") for i in range(12)], 32)
    named = []
    for part, drawn in zip(rank_windows(block, ORDER, 0, 1, 32), (first, second), strict=True):
        named.append([fault.member for fault in part.faults])
        shown = part.labels.ravel()
        valid = [image not in corrupt for image in drawn.tolist()]
        assert shown[valid].tolist() == drawn[valid].tolist()
        assert set(shown.tolist()) <= set(drawn.tolist()) - corrupt
        assert np.array_equal(part.images, wanted[part.labels])
    assert named == [[f"k{first.min()}.png", f"k{first.max()}.png"], [f"k{second[0]}.png"]]


def test_window_of_corrupt_images_alone_is_refused_in_one_line(dataset: Dataset, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "a.tar").read_bytes())
    for offset in dataset.index.offset.tolist():
        content[offset + 520 : offset + 600] = bytes(80)
    (tmp_path / "a.tar").write_bytes(content)
    with SampleReader(dataset.shard_paths()) as reader, pytest.raises(DataError) as caught:
        list(read_windows(reader, dataset.index, ORDER, [0], 32, [[0]]))
    assert str(caught.value).startswith("all 8 images of a window are corrupt; the first is ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [DataError("a.tar: is missing"), StorageError("a.tar: cannot be read")])
def test_error_block_is_raised_as_its_error_where_it_is_taken(error: DataError | StorageError) -> None:
    with pytest.raises(type(error), match=str(error)):
        rank_windows(error_block(error), ORDER, 0, 1, 32)


def test_rank_windows_of_a_block_are_views_of_it(tmp_path: Path) -> None:
    """Every rank gets its rows of the global batch, and no image is copied."""
    synthesize(tmp_path / "faces", identities=4, images_per_identity=6, seed=0, image_size=32)
    dataset = open_dataset(tmp_path / "faces")
    order = SampleOrder(num_samples=24, batch_size=8, chunk_images=2, window_images=16)
    with SampleReader(dataset.shard_paths()) as reader:
        whole, half = (
            next(read_windows(reader, dataset.index, order, [0, 1], 32, nodes)) for nodes in ([[0]], [[0, 1]])
        )
    expected = rank_windows(whole, order, 0, 1, 32)
    before = pa.total_allocated_bytes()
    parts = [rank_windows(half, order, rank, 2, 32) for rank in range(2)]
    assert pa.total_allocated_bytes() - before < expected[0].images.nbytes / 2
    for window, both in zip(expected, zip(*parts, strict=True), strict=True):
        assert np.array_equal(window.images, np.concatenate([part.images for part in both], axis=1))
        assert np.array_equal(window.labels, np.concatenate([part.labels for part in both], axis=1))


def test_corrupt_images_of_pairs_are_replaced_within_their_pair_or_together(tmp_path: Path) -> None:
    """The two images of an identity pair still show one person."""
    members = []
    for i in range(12):
        data = picture(i, "png")
        members += [(f"k{i}.png", data[:-40] if i in (0, 1, 2, 6) else data), (f"k{i}.cls", b"%d" % (i // 2))]
    write_tar(tmp_path / "a.tar", members)
    dataset = open_dataset(tmp_path)
    groups = group_by_label(dataset.index.label, 6)
    order = PairOrder(num_samples=12, num_identities=6, batch_size=6, window_images=12)
    with SampleReader(dataset.shard_paths()) as reader:
        (block,) = read_windows(reader, dataset.index, order, [0], 32, [[0]], groups)
    (part,) = rank_windows(block, order, 0, 1, 32)
    wanted, _ = decode_images([picture(i, "png") for i in range(12)], 32)
    drawn = order.window(0, groups)[0].reshape(6, 2)
    images, labels = part.images[0].reshape(6, 2, 32, 32, 3), part.labels[0].reshape(6, 2)
    assert len(part.faults) == 4
    for ids, pair, own in zip(drawn, images, labels, strict=True):
        valid = [i for i in ids if i not in (0, 1, 2, 6)]
        shown = [*valid, valid[0]][:2] if valid else None
        if shown is None:  # both of identity 0: one image of another identity, twice
            assert own[0] == own[1] != 0
            assert np.array_equal(pair[0], pair[1])
        else:
            assert own.tolist() == [ids[0] // 2] * 2
            assert np.array_equal(pair, wanted[shown])
