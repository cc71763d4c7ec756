"""Convert WebDataset tars of any shape (compressed, in sub-folders, labels with holes) into one dataset."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.directory import refuse_unfinished
from rayface.data.listing import codec_of, refuse_not_a_tar, shard_files, tars_not_read
from rayface.data.manifest import IDENTITIES, read_identities
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.data.shards.scan import ScanJob, ShardScan, joint_table, scan_shards
from rayface.data.writer import DEFAULT_SHARD_SIZE, ShardWriter, refuse_not_empty
from rayface.progress import phase
from rayface.storage import DataError, is_local, join, list_entries, locate, make_folder, normalise, one_line, split

_CHUNK = 512  # samples in memory
_COPY_BYTES = 4 << 20
_TAR_SUFFIX = re.compile(r"\.tar(\.\w+)?$|\.t\w+$", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x1f.]")


def convert_webdataset(
    src: str | Path,
    out: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    layout: str = "shuffled",
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Convert a tar, or all tars of a folder and its sub-folders, into one dataset.

    Images keep their bytes. Labels are one label space; they are numbered anew in the order of the old ones, so that
    every class has an image. Names are those of identities.parquet beside the tars. Keys are the shards' own without
    dots, SHARD/KEY where several shards have the same. What cannot be read or decoded is left out and is among the
    faults of the dataset returned.

    Compressed tars, and those of an object store, are unpacked beside `out` first (in the temporary folder where that
    is none on this machine), for samples are shuffled one by one. Memory: about 200 bytes a sample.

    Raises:
        DataError: no sample, a compressed tar that is damaged, a file that is no tar, `out` is not empty.
        ValueError: a setting is out of range.
    """
    if layout not in ("shuffled", "by_identity"):
        raise ValueError(f"layout {layout!r}: must be shuffled or by_identity")
    root, target = normalise(src), normalise(out)
    make_folder(target)
    refuse_not_empty(target)
    sources = _sources(root)
    near = os.path.dirname(target) if is_local(target) else None
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=near) as folder:
        paths = [_at_hand(path, folder, number) for number, path in enumerate(sources)]
        jobs = [ScanJob(number=number, path=path, deep=True) for number, path in enumerate(paths)]
        scans = scan_shards(jobs, sum(os.path.getsize(path) for path in paths))
        faults = [dataclasses.replace(f, shard=sources[n]) for n, scan in enumerate(scans) for f in scan.faults]
        refuse_not_a_tar(faults)
        labels, old = _relabelled(root, scans, faults)
        with ShardWriter(
            target,
            name=name or split(target)[1],
            identities=_names(root, old),
            num_classes=len(old),
            image_size=_common_size(scans),
            layout=layout,
            source=f"webdataset {root.partition('?')[0].rstrip('/').rpartition('/')[2]}",
            shard_size=shard_size,
        ) as writer:
            order = _order(labels, layout, seed)
            unique = _unique_keys(sources, scans)
            with phase("convert images", parts=len(labels), rows=len(labels)) as current:
                for entry in _read(paths, scans, order):
                    if isinstance(entry, Fault):
                        faults.append(entry)
                    else:
                        row, key, image = entry
                        writer.add(unique(row, key), int(labels[row]), image)
                    current.advance()
            return dataclasses.replace(writer.finish(), faults=tuple(faults))


def _sources(root: str) -> list[str]:
    """Return the tar `root`, or those in and below that folder."""
    if _is_file(root):
        return [root]
    files, folders = list_entries(root, "folder or tar")
    refuse_unfinished(root, {file.name for file in files})
    names = [file.name for file in shard_files(files)] + tars_not_read(root, files, folders, most_folders=None)
    if not names:
        raise DataError(f"{root}: no tars (*.tar, *.tar.gz, *.tgz, ...) in this folder and its sub-folders")
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(_stem(name), name)
        if first != name:
            raise DataError(f"{root}: {first} and {name} are probably the same tar, packed and unpacked: remove one")
    return [join(root, name) for name in names]


def _is_file(path: str) -> bool:
    filesystem, inside = locate(path)
    return bool(filesystem.get_file_info(inside).is_file)


def _at_hand(path: str, folder: str, number: int) -> str:
    """Return the path of a plain tar on this machine: the tar itself, or its copy in `folder`."""
    codec = codec_of(path.partition("?")[0])
    if codec is None and is_local(path):
        return path
    copy = os.path.join(folder, f"{number}.tar")
    filesystem, inside = locate(path)
    try:
        with filesystem.open_input_stream(inside, compression=codec) as stream, open(copy, "wb") as file:
            shutil.copyfileobj(stream, file, _COPY_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be unpacked into {folder} ({one_line(error)}): replace the file or remove it"
        ) from None
    return copy


def _relabelled(root: str, scans: Sequence[ShardScan], faults: Sequence[Fault]) -> tuple[NDArray[np.int32], list[int]]:
    """Return the labels, numbered without holes, and the old label of each."""
    labels = joint_table(scans)["label"].to_numpy()
    if not len(labels):
        first = f"; the first fault: {faults[0]}" if faults else ""
        raise DataError(f"{root}: no readable sample (an image and its label) in {len(scans)} tars{first}")
    old, new = np.unique(labels, return_inverse=True)
    return new.astype(np.int32), old.tolist()


def _names(root: str, old: list[int]) -> list[str] | None:
    if _is_file(root) or IDENTITIES not in {file.name for file in list_entries(root)[0]}:
        return None
    names = read_identities(root, old[-1] + 1, exact=False)
    return [names[label] for label in old]


def _common_size(scans: Sequence[ShardScan]) -> tuple[int, int] | None:
    sizes = {scan.image_size for scan in scans if scan.image_size}
    return sizes.pop() if len(sizes) == 1 else None


def _order(labels: NDArray[np.int32], layout: str, seed: int) -> NDArray[np.int64]:
    if layout == "by_identity":
        return np.argsort(labels, kind="stable")
    return np.random.default_rng(seed).permutation(len(labels))


def _unique_keys(sources: Sequence[str], scans: Sequence[ShardScan]) -> Callable[[int, str], str]:
    """Return what gives a sample's key from its row and own key: the simplest of three ways that makes all differ.

    Memory: 8 bytes a sample.
    """
    starts = np.cumsum([0, *(len(scan.table) for scan in scans)])
    stems = _stems(sources)

    def plain(row: int, key: str) -> str:
        return clean_key(key)

    def of_shard(row: int, key: str) -> str:
        return f"{stems[int(np.searchsorted(starts, row, 'right')) - 1]}/{clean_key(key)}"

    def numbered(row: int, key: str) -> str:
        return f"{of_shard(row, key)}-{row}"

    for ways in (plain, of_shard):
        keys = (key.as_py() for scan in scans for key in scan.table["key"])
        hashes = np.fromiter((hash(ways(row, key)) for row, key in enumerate(keys)), np.int64, int(starts[-1]))
        hashes.sort()
        if not (hashes[1:] == hashes[:-1]).any():
            return ways
    return numbered


def _stems(sources: Sequence[str]) -> list[str]:
    """Return the tars' paths below the folder that all are in, without suffixes."""
    plain = [path.partition("?")[0] for path in sources]
    common = len(os.path.commonpath([os.path.dirname(path) for path in plain])) + 1
    return [clean_key(_stem(path[common:])) for path in plain]


def _stem(name: str) -> str:
    return _TAR_SUFFIX.sub("", name)


def clean_key(key: str) -> str:
    """Return a key that any reader of WebDataset takes as it is: a relative path without dots, which end keys there."""
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    return "/".join(_UNSAFE.sub("_", part) for part in parts) or "_"


def _read(
    paths: Sequence[str], scans: Sequence[ShardScan], order: NDArray[np.int64]
) -> Iterator[tuple[int, str, bytes] | Fault]:
    """Yield (row, key, image) in `order`; the fault of one that was readable when it was scanned."""
    table = joint_table(scans)
    columns = [table[name].to_numpy() for name in ("shard", "offset", "num_bytes", "label", "label")]
    index = SampleIndex(*columns)
    for start in range(0, len(order), _CHUNK):
        rows = order[start : start + _CHUNK]
        for row, sample in zip(rows.tolist(), read_samples(paths, index.select(rows)), strict=True):
            yield sample if isinstance(sample, Fault) else (row, sample.key, sample.jpeg)
