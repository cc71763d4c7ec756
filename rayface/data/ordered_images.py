"""Images at given positions of a dataset's index, in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.data.streaming.sample_order import Ids

Item = TypeVar("Item")


class OrderedImage(NamedTuple):
    """An image of a dataset: its key, its label in the joint label space, and the bytes of its file."""

    key: str
    label: int
    data: bytes


def read_in_order(
    reader: SampleReader,
    index: SampleIndex,
    ids: Ids,
    key_prefixes: Sequence[str],
    decode: Callable[[OrderedImage], Item],
) -> Iterator[Item | Fault]:
    """Yield what `decode` makes of each of the images `ids`, or its Fault; a ValueError of `decode` is one.

    Memory: the files of all of `ids`.

    Raises:
        DataError, StorageError: see `SampleReader.read`.
    """
    samples = dict(reader.read(index.select(ids)))
    rows = zip(index.shard[ids].tolist(), index.label[ids].tolist(), strict=True)
    for place, (shard, label) in enumerate(rows):
        sample = samples.pop(place)
        if isinstance(sample, Fault):
            yield sample
            continue
        try:
            yield decode(OrderedImage(key_prefixes[shard] + sample.key, label, sample.jpeg))
        except ValueError as error:
            yield Fault(shard=reader.shards[shard], member=sample.key, offset=sample.offset, reason=str(error))
