"""Reader's side of the stream: reads and decodes windows into one block for each training node.

Runs in read tasks, so it must not import torch, which costs seconds and memory.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.decode import decode_image
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.random_access import SampleReader, locate_member
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.data.streaming.label_groups import LabelGroups
from rayface.data.streaming.sample_order import Ids, SampleOrder
from rayface.storage import DataError, StorageError

Images = NDArray[np.uint8]


class RankWindow(NamedTuple):
    """A rank's part of a window's steps, of all or of the first ones that are trained.

    `images` uint8 (steps, rows, size, size, 3) RGB, `labels` int64 (steps, rows); `place`: of the first step in the
    window.
    """

    window: int
    place: int
    images: Images
    labels: NDArray[np.int64]
    faults: tuple[Fault, ...]


def read_windows(
    reader: SampleReader,
    index: SampleIndex,
    order: SampleOrder,
    windows: Sequence[int],
    image_size: int,
    nodes: Sequence[Sequence[int]],
    groups: LabelGroups | None = None,
    early: range | None = None,
) -> Iterator[pa.Table]:
    """Read and decode windows; yield a block of one row for each node: its ranks' parts of every window.

    A valid image of the same row, or else of the same window, replaces each corrupt one, so that every batch is full.

    Args:
        nodes: the ranks of each training node.
        groups: the images of each identity, if the order needs them.
        early: steps of the first window that are decoded first, for one more block for each node, before the others.
            It has no parts if one of its images is corrupt: its replacement may be any image of the window.

    Raises:
        DataError: all images of a window are corrupt, or a shard is missing.
        StorageError: the storage of a shard fails.
    """
    world_size = sum(map(len, nodes))
    ids = [order.window(window, groups) for window in windows]
    parts = [[(at, rank) for at in range(len(windows)) for rank in ranks] for ranks in nodes]
    slots, counts = _slots(order, ids, parts, world_size)
    starts = np.cumsum([0, *(each.size for each in ids)]).tolist()
    images = np.frombuffer(pa.allocate_buffer(starts[-1] * image_size**2 * 3), np.uint8)  # Arrow keeps freed memory
    images = images.reshape(-1, image_size, image_size, 3)
    samples = index.select(np.concatenate([each.ravel() for each in ids]))
    labels = np.empty(len(samples), np.int64)
    labels[slots] = samples.label
    rest = np.arange(len(samples))
    faults: dict[int, Fault] = {}
    if early is not None:
        per_step = ids[0].shape[1]
        soon, rest = np.split(np.roll(rest, -early.start * per_step), [len(early) * per_step])
        faults = _decode(reader, samples, soon, images, slots)
        soon_slots = slots[soon].reshape(len(early), per_step)
        for ranks in nodes:
            given = [] if faults else ranks
            yield _early_block(order, windows[0], early.start, given, world_size, soon_slots, images, labels)
    faults |= _decode(reader, samples, rest, images, slots)
    notes = _replace_corrupt(images, labels, slots, starts, samples, faults, order.images_per_row)
    first = 0
    for own, sizes in zip(parts, counts, strict=True):
        rows = slice(first, first := first + sum(sizes))
        yield _block(own, sizes, windows, images[rows], labels[rows], notes)


def _slots(
    order: SampleOrder, ids: Sequence[Ids], parts: Sequence[Sequence[tuple[int, int]]], world_size: int
) -> tuple[Ids, list[list[int]]]:
    """Return the slot of each image, such that every part is contiguous, and the number of images of each part."""
    starts = np.cumsum([0, *(each.size for each in ids)])
    slots, counts, end = np.empty(starts[-1], np.int64), [], 0
    for own in parts:
        sizes = []
        for at, rank in own:
            places = np.arange(ids[at].size).reshape(ids[at].shape)[:, order.rank_images(rank, world_size)]
            slots[starts[at] + places.ravel()] = np.arange(end, end := end + places.size)
            sizes.append(places.size)
        counts.append(sizes)
    return slots, counts


def _decode(reader: SampleReader, samples: SampleIndex, places: Ids, images: Images, slots: Ids) -> dict[int, Fault]:
    """Decode samples[i] into images[slots[i]] for every i of `places`, and return the faults by i."""
    faults: dict[int, Fault] = {}
    size = images.shape[1]
    for at, sample in reader.read(samples.select(places)):
        place = int(places[at])
        if isinstance(sample, Fault):
            faults[place] = sample
            continue
        try:
            decode_image(sample.jpeg, size, out=images[slots[place]])
        except ValueError as error:
            shard = reader.shards[samples.shard[place]]
            member, offset = locate_member(shard, sample.offset, sample.num_bytes, IMAGE_SUFFIXES)
            faults[place] = Fault(shard=shard, member=member, offset=offset, reason=str(error))
    return faults


def _replace_corrupt(
    images: Images,
    labels: NDArray[np.int64],
    slots: Ids,
    starts: Sequence[int],
    samples: SampleIndex,
    faults: dict[int, Fault],
    images_per_row: int,
) -> list[str]:
    """Replace the corrupt images of every window; return the faults of each window as JSON, in the shards' order."""
    reported = sorted(faults, key=lambda place: (samples.shard[place], samples.offset[place], place))
    notes = []
    for start, stop in itertools.pairwise(starts):
        bad = {place - start: faults[place] for place in reported if start <= place < stop}
        notes.append(_stand_in(images, labels, slots[start:stop], bad, images_per_row))
    return notes


def _stand_in(
    images: Images, labels: NDArray[np.int64], slots: Ids, faults: dict[int, Fault], images_per_row: int
) -> str:
    """Replace each corrupt image by a valid one of its row; a row without any by one of the window.

    Returns:
        The faults as JSON.
    """
    whole = np.setdiff1d(np.arange(len(slots)), list(faults))
    if not whole.size:
        raise DataError(f"all {len(slots)} images of a window are corrupt; the first is {next(iter(faults.values()))}")
    for place in faults:
        row = place - place % images_per_row
        valid = [near for near in range(row, row + images_per_row) if near not in faults]
        other = slots[valid[0] if valid else whole[row % whole.size]]
        images[slots[place]], labels[slots[place]] = images[other], labels[other]
    return json.dumps([vars(fault) for fault in faults.values()])


def _early_block(
    order: SampleOrder,
    window: int,
    place: int,
    ranks: Sequence[int],
    world_size: int,
    slots: Ids,
    images: Images,
    labels: NDArray[np.int64],
) -> pa.Table:
    """Return the ranks' rows of some steps from `place` on, a copy; `slots` (steps, B * images_per_row)."""
    rows = [slots[:, order.rank_images(rank, world_size)].ravel() for rank in ranks]
    chosen = np.concatenate([np.arange(0), *rows])
    sizes = [len(each) for each in rows]
    return _block([(0, rank) for rank in ranks], sizes, [window], images[chosen], labels[chosen], ["[]"], place)


def _block(
    own: Sequence[tuple[int, int]],
    sizes: Sequence[int],
    windows: Sequence[int],
    images: Images,
    labels: NDArray[np.int64],
    notes: Sequence[str],
    place: int = 0,
) -> pa.Table:
    """Return one row with a list over the node's parts in each column; images are not copied."""
    columns = {
        "window": pa.array([windows[at] for at, _ in own], pa.int64()),
        "place": pa.array([place] * len(own), pa.int64()),
        "rank": pa.array([rank for _, rank in own], pa.int64()),
        "images": _cut(images, sizes),
        "labels": _cut(labels, sizes),
        "faults": pa.array([notes[at] for at, _ in own], pa.string()),
    }
    return pa.table({name: pa.LargeListArray.from_arrays([0, len(own)], values) for name, values in columns.items()})


def _cut(rows: NDArray[np.generic], sizes: Sequence[int]) -> pa.LargeBinaryArray:
    offsets = np.cumsum([0, *sizes]) * (rows[0].nbytes if len(rows) else 0)
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.Array.from_buffers(pa.large_binary(), len(sizes), buffers)


def error_block(error: DataError | StorageError) -> pa.Table:
    """Return the block that stands for an error of read_windows."""
    return pa.table({"of_storage": [isinstance(error, StorageError)], "message": [str(error)]})


def rank_windows(block: pa.Table, order: SampleOrder, rank: int, world_size: int, image_size: int) -> list[RankWindow]:
    """Return a rank's parts of a block, in order; arrays are views of the block.

    Raises:
        DataError, StorageError: that of an error_block.
    """
    if "message" in block.column_names:
        raise (StorageError if block["of_storage"][0].as_py() else DataError)(block["message"][0].as_py())
    columns = {name: block[name][0].values for name in block.column_names}
    rows = order.rank_images(rank, world_size)
    shape = (-1, rows.stop - rows.start)
    found = []
    for at in np.flatnonzero(columns["rank"].to_numpy() == rank).tolist():
        images, labels = (_bytes_at(columns[name], at) for name in ("images", "labels"))
        found.append(
            RankWindow(
                window=columns["window"][at].as_py(),
                place=columns["place"][at].as_py(),
                images=images.reshape(*shape, image_size, image_size, 3),
                labels=labels.view(np.int64).reshape(shape),
                faults=tuple(Fault(**fault) for fault in json.loads(columns["faults"][at].as_py())),
            )
        )
    return found


def _bytes_at(values: pa.LargeBinaryArray, at: int) -> NDArray[np.uint8]:
    """Return a view of one value, (n,); values[at] would copy it."""
    _, offsets, data = values.buffers()
    first, last = np.frombuffer(offsets, np.int64)[values.offset + at :][:2]
    return np.frombuffer(data, np.uint8)[first:last]
