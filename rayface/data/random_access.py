"""Read single samples of a dataset by its index: few large reads, headers checked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .samples import JPEG_SUFFIXES, MAX_LABEL_BYTES, Fault, Sample, SampleIndex, parse_label
from .storage import Source, is_local
from .tar import Fetch, TarError, read_member, split_name

_RUN_BYTES = 32 << 20  # the longest stretch fetched by one read
_REMOTE_THREADS = 16


def read_samples(shards: Sequence[str], index: SampleIndex) -> list[Sample | Fault]:
    """Read the samples of `index` from `shards`, in the order of the index; a Fault stands where one cannot be read.

    Samples that lie side by side in a shard, in whatever order they are asked for, are fetched by one read of at most
    32 MiB; object stores are asked by up to 16 threads. Headers are checked again, the label must be `source_label`.
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
    try:
        source = Source(shard)
    except ValueError as error:
        reason = str(error).removeprefix(f"{shard}: ")
        for i, position in enumerate(positions):
            out[position] = Fault(shard=shard, member=None, offset=starts[i], reason=reason, kind="truncated")
        return

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
    """Parse the members in [start, stop): exactly one key, with .jpg, .cls and the expected label."""
    jpeg = label = None
    key = name = ""
    at = start
    try:
        while at < stop:
            member = read_member(fetch, at, stop)
            if member is None:
                raise TarError(at, "zeros where the index has a tar header", kind="index")
            name = member.name
            own_key, suffix = split_name(name)
            if own_key and member.type not in b"3456":
                if key and own_key != key:
                    raise TarError(at, f"not a member of sample {key}, which the index has here", name, "index")
                key = own_key
                if suffix == "cls" and member.is_file:
                    label = parse_label(fetch(member.data, min(member.size, MAX_LABEL_BYTES)))
                    if label != expected:
                        raise TarError(at, f"label is {label}, the index says {expected}", name, "label")
                elif suffix in JPEG_SUFFIXES and member.is_file and jpeg is None:
                    jpeg = fetch(member.data, member.size)
            at = member.end
        if jpeg is None or label is None:
            missing = "jpg" if jpeg is None else "cls"
            raise TarError(start, f"no .{missing} member with this key", name, "missing member")
    except TarError as error:
        kind = error.kind
        return Fault(shard=shard, member=error.member, offset=error.offset, reason=error.reason, kind=kind)
    except ValueError as error:
        return Fault(shard=shard, member=name, offset=at, reason=str(error), kind="label")
    return Sample(key, label, jpeg, start, stop - start)
