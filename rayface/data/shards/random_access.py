"""Random access to samples by the index: few large reads, many in flight, headers validated again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rayface.data.shards.copies import CopyRules, ShardCopies
from rayface.data.shards.members import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    BadMemberError,
    MemberName,
    members_by_key,
    parse_name,
    samples_among,
)
from rayface.data.shards.open_files import OpenFiles
from rayface.data.shards.samples import Fault, Sample, SampleIndex
from rayface.data.shards.tar import BLOCK, Fetch, Member, TarError, parse_header, read_member
from rayface.storage import REQUESTS, DataError, Source, StorageError, is_local

_RUN_BYTES = 32 << 20  # maximum bytes of one read
# Between two samples of an object store: reading them takes less CPU time than another request, .2 to .3 ms. So would
# larger gaps, but a node's network would carry little else.
_GAP_BYTES = 64 << 10
_PROBED = 8  # reads that are timed to recognise a network disk
_SLOW_SECONDS = 1e-3  # a read of a network disk takes longer; concurrent reads hide it

_Run = tuple[int, list[int], list[int], list[int], list[int]]  # shard; positions, starts, stops, labels


def read_samples(shards: Sequence[str], index: SampleIndex) -> list[Sample | Fault]:
    """Read the samples of `index` from `shards`, in the order of the index; see SampleReader.read."""
    out: list[Sample | Fault | None] = [None] * len(index)
    with SampleReader(shards) as reader:
        for position, sample in reader.read(index):
            out[position] = sample
    return out  # type: ignore[return-value]  # every place is filled


class SampleReader:
    """Reads samples of shards and keeps its threads and the files of object stores open; a context manager.

    Args:
        copy_rules: which shards of an object store are copied to this node and read there, see ShardCopies.
    """

    def __init__(self, shards: Sequence[str], copy_rules: CopyRules | None = None):
        self.shards = shards
        self._gaps = np.array([0 if is_local(shard) else _GAP_BYTES for shard in shards], np.int64)
        self._files = OpenFiles()
        self._pool = ThreadPoolExecutor(REQUESTS)  # starts threads on demand
        self._copies = ShardCopies(shards, copy_rules) if copy_rules else None

    def read(self, index: SampleIndex) -> Iterator[tuple[int, Sample | Fault]]:
        """Yield (position in `index`, sample), shard by shard, with a Fault for each corrupt sample.

        Adjacent samples of a shard, in any order of `index`, are fetched by one read of at most 32 MiB, those of an
        object store also across gaps of at most 64 KiB. If a read takes a millisecond or more, up to storage.REQUESTS
        reads are in flight; those of an object store come last. Headers are validated again, and the label must equal
        `source_label`.

        Raises:
            DataError: a shard is missing or forbidden.
            StorageError: the storage of a shard fails; see storage.retried.
        """
        paths = self._copies.paths(np.unique(index.shard).tolist()) if self._copies else {}
        gaps = self._gaps.copy()
        gaps[list(paths)] = 0
        reads = [(run, paths.get(run[0], self.shards[run[0]])) for run in _runs(index, gaps)]
        from_store = self._pool.map(self._read_run, [read for read in reads if not is_local(read[1])])
        waiting, seconds = iter([read for read in reads if is_local(read[1])]), 0.0
        for number, read in enumerate(waiting, 1):
            began = time.perf_counter()
            samples = self._read_run(read)
            seconds += time.perf_counter() - began
            yield from samples
            if number == _PROBED and seconds > _PROBED * _SLOW_SECONDS:
                break
        for samples in itertools.chain(self._pool.map(self._read_run, waiting), from_store):
            yield from samples

    def _read_run(self, read: tuple[_Run, str]) -> list[tuple[int, Sample | Fault]]:
        """Read a run from its shard or the copy of it, and from the shard what cannot be read from the copy."""
        run, path = read
        shard = self.shards[run[0]]
        if self._copies is None or path == shard:
            return self._samples(run, shard)
        try:
            found = self._samples(run, path)
        except (DataError, StorageError):  # it was deleted, or the disk fails
            self._copies.forget(run[0], damaged=False)
            return self._samples(run, shard)
        if not any(isinstance(sample, Fault) for _, sample in found):
            return found
        original = self._samples(run, shard)
        if original != found:
            self._copies.forget(run[0], damaged=True)
        return original

    def _samples(self, run: _Run, path: str) -> list[tuple[int, Sample | Fault]]:
        number, positions, starts, stops, labels = run
        shard = self.shards[number]
        with self._files.opened(path) as source:
            data = source.read(starts[0], stops[-1] - starts[0])
        base, fetch = starts[0], _slicer(data, starts[0])
        return [
            (
                position,
                _plain_sample(data, start, start - base, stop - base, label)
                or _parse_sample(shard, fetch, start, stop, label),
            )
            for position, start, stop, label in zip(positions, starts, stops, labels, strict=True)
        ]

    def __enter__(self) -> SampleReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._files.close()
        if self._copies:
            self._copies.close()


def _runs(index: SampleIndex, max_gaps: NDArray[np.int64]) -> list[_Run]:
    """Group samples with at most `max_gaps[shard]` bytes between them, in the order of the shards."""
    if not len(index):
        return []
    order = np.lexsort((index.offset, index.shard))
    shards, offsets, labels = index.shard[order], index.offset[order], index.source_label[order]
    ends = offsets + index.num_bytes[order]
    gaps = offsets[1:] - ends[:-1]  # negative: the same sample again
    breaks = (shards[1:] != shards[:-1]) | (gaps < 0) | (gaps > max_gaps[shards[1:]])
    breaks |= offsets[1:] // _RUN_BYTES != offsets[:-1] // _RUN_BYTES
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(order)]
    positions, starts, stops, expected = order.tolist(), offsets.tolist(), ends.tolist(), labels.tolist()
    return [
        (int(shards[a]), positions[a:b], starts[a:b], stops[a:b], expected[a:b]) for a, b in itertools.pairwise(edges)
    ]


def _slicer(data: bytes, base: int) -> Callable[[int, int], bytes]:
    def fetch(offset: int, count: int) -> bytes:
        return data[offset - base : offset - base + count]

    return fetch


def _plain_sample(data: bytes, offset: int, at: int, end: int, expected: int) -> Sample | None:
    """Return the sample of a valid KEY.jpg and KEY.cls in data[at:end] as _parse_sample does, in a third of the time.

    Returns None for anything else, valid or not. `offset` is that of the sample in its shard.
    """
    if end > len(data):  # the shard was cut off
        return None
    try:
        name, size, kind = parse_header(data[at : at + BLOCK])
        middle = at + BLOCK + -(-size // BLOCK) * BLOCK
        if middle + BLOCK >= end:
            return None
        other, length, other_kind = parse_header(data[middle : middle + BLOCK])
    except ValueError:
        return None
    image, label = (at + BLOCK, size), (middle + BLOCK, length)
    if name.endswith(".cls"):
        name, other, image, label = other, name, label, image
    key, _, suffix = name.partition(".")
    text = data[label[0] : label[0] + min(label[1], MAX_TEXT_BYTES)].strip()
    if (
        suffix not in IMAGE_SUFFIXES
        or other != f"{key}.cls"
        or key[-1:] in ("", "/")
        or (kind, other_kind) != (b"0", b"0")
        or middle + BLOCK + -(-length // BLOCK) * BLOCK != end
        or not text.isdigit()
        or int(text) != expected
    ):
        return None
    return Sample(key, expected, data[image[0] : image[0] + image[1]], offset, end - at)


def _parse_sample(shard: str, fetch: Fetch, start: int, stop: int, expected: int) -> Sample | Fault:
    """Parse the members in [start, stop), which must be one group with one sample of the expected label."""
    try:
        members = _members(fetch, start, stop)
        found = members_by_key(members)
        complete = samples_among(found, members[0][0].group)
        if len(complete) != 1:
            key = complete[1] if complete else next(iter(found), "")
            missing = "image" if not found or found[key].labels else "label"
            reason = f"also a member of sample {key}" if complete else f"no {missing} with this key"
            raise TarError(start, reason, members[0][1].name, "index" if complete else "missing member")
        (key,) = complete
        label, image = found[key].read(fetch)
        if label != expected:
            member = next(iter(found[key].labels.values()))
            raise BadMemberError(member, "label", f"label is {label}, the index says {expected}")
    except TarError as error:
        kind = error.kind
        return Fault(shard=shard, member=error.member, offset=error.offset, reason=error.reason, kind=kind)
    except BadMemberError as error:
        member = error.member
        return Fault(shard=shard, member=member.name, offset=member.offset, reason=str(error), kind=error.kind)
    return Sample(key, label, image, start, stop - start)


def _members(fetch: Fetch, start: int, stop: int) -> list[tuple[MemberName, Member]]:
    """Return the members in [start, stop), which must be of one group; TarError otherwise."""
    members: list[tuple[MemberName, Member]] = []
    at = start
    while at < stop:
        member = read_member(fetch, at, stop)
        if member is None:
            raise TarError(at, "zeros where the index has a tar header", kind="index")
        name = parse_name(member.name)
        if name.group and member.type not in b"3456":
            if members and name.group != members[0][0].group:
                group = members[0][0].group
                raise TarError(at, f"not a member of sample {group}, which the index has here", member.name, "index")
            members.append((name, member))
        at = member.end
    if not members:
        raise TarError(start, "no sample where the index has one", kind="index")
    return members


def locate_member(shard: str, offset: int, num_bytes: int, suffixes: Collection[str]) -> tuple[str | None, int]:
    """Return name and byte offset of a sample's member with one of `suffixes`; (None, `offset`) if there is none."""
    found: dict[str, Member] = {}
    try:
        with Source(shard) as source:
            at = offset
            while at < offset + num_bytes:
                member = read_member(source.read, at, offset + num_bytes)
                if member is None:
                    break
                name = parse_name(member.name)
                if name.suffix in suffixes:
                    found.setdefault(name.key, member)
                at = member.end
    except (TarError, ValueError):
        pass  # the sample is corrupt: name its start
    if not found:
        return None, offset
    member = found[min(found, key=len)]  # a.jpg, not a.thumb.jpg
    return member.name, member.offset
