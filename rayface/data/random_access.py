"""Read single samples of a dataset by its index: few large reads, headers checked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .members import BadMemberError, MemberName, members_by_key, parse_name, samples_among
from .samples import Fault, Sample, SampleIndex
from .storage import Source, is_local
from .tar import Fetch, Member, TarError, read_member

_RUN_BYTES = 32 << 20  # the longest stretch fetched by one read
_REMOTE_THREADS = 16


def read_samples(shards: Sequence[str], index: SampleIndex) -> list[Sample | Fault]:
    """Read the samples of `index` from `shards`, in the order of the index; a Fault stands where bytes are damaged.

    Samples that lie side by side in a shard, in whatever order they are asked for, are fetched by one read of at most
    32 MiB; object stores are asked by up to 16 threads. Headers are checked again, the label must be `source_label`.

    Raises:
        DataError: a shard is missing or forbidden.
        StorageError: a shard cannot be read for now; see storage.retried.
    """
    out: list[Sample | Fault | None] = [None] * len(index)
    order = np.lexsort((index.offset, index.shard))
    for number, ids in _split_where(order, np.diff(index.shard[order]) != 0):
        shard = shards[int(index.shard[number])]
        _read_shard(shard, index, ids, out)
    return out  # type: ignore[return-value]  # every place is filled


def _split_where(order: np.ndarray, breaks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Split `order` after the positions where `breaks` is true: (first id, ids) of every part."""
    parts = np.split(order, np.flatnonzero(breaks) + 1) if len(order) else []
    return [(int(part[0]), part) for part in parts]


def _read_shard(shard: str, index: SampleIndex, ids: np.ndarray, out: list[Sample | Fault | None]) -> None:
    """Fill `out` at `ids`, all of one shard and in the order of their offsets."""
    offsets = index.offset[ids]
    ends = offsets + index.num_bytes[ids]
    breaks = (offsets[1:] != ends[:-1]) | (offsets[1:] // _RUN_BYTES != offsets[:-1] // _RUN_BYTES)
    runs = np.flatnonzero(np.concatenate(([True], breaks, [True])))
    positions, starts, stops = ids.tolist(), offsets.tolist(), ends.tolist()
    labels = index.source_label[ids].tolist()
    source = Source(shard)

    def read_run(bounds: tuple[int, int]) -> None:
        first, last = bounds
        base = starts[first]
        data = source.read(base, stops[last - 1] - base)
        fetch = _slicer(data, base)
        for i in range(first, last):
            out[positions[i]] = _parse_sample(shard, fetch, starts[i], stops[i], labels[i])

    bounds = list(zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True))
    with source:
        if is_local(shard) or len(bounds) == 1:
            for run in bounds:
                read_run(run)
        else:
            with ThreadPoolExecutor(min(_REMOTE_THREADS, len(bounds))) as pool:
                list(pool.map(read_run, bounds))


def _slicer(data: bytes, base: int) -> Callable[[int, int], bytes]:
    def fetch(offset: int, count: int) -> bytes:
        return data[offset - base : offset - base + count]

    return fetch


def _parse_sample(shard: str, fetch: Fetch, start: int, stop: int, expected: int) -> Sample | Fault:
    """Parse the members in [start, stop): one group with exactly one sample, which has the expected label."""
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
    """Return the members in [start, stop), which must be of one group; TarError where they cannot be read."""
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
