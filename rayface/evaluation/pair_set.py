"""Pairs of images for verification: read by name from a dataset, or from a .bin file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_images
from rayface.data.keys import find_keys
from rayface.data.shards.members import parse_name
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.data.sources.bin_file import open_bin
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.pairs_file import lfw_names, read_pairs
from rayface.storage import local_copy, normalise, split


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSet:
    """P pairs of images: `images` uint8 RGB (n, size, size, 3), and the indices `a` and `b` (P,) into it.

    Attributes:
        members: names of the images in the pairs file, (n,).
        source: the images in their dataset; None if they are of no dataset.
        digest: digest of the images if they are of no dataset; "": unknown.
    """

    name: str
    images: NDArray[np.uint8]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    fold: NDArray[np.int64]
    members: tuple[str, ...] = ()
    source: ImageRows | None = None
    digest: str = ""


class MissingMembersError(ValueError):
    """The pairs name `count` images that the dataset does not have."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def load_pairs(pairs_csv: str | Path, data: str | Path | Sequence[str], *, image_size: int) -> PairSet:
    """Read a pairs file and the images that it names, each once.

    Args:
        pairs_csv: columns `path_a,path_b,is_same,fold`: names of tar members, 0 or 1, and the number of the fold; or a
            file in the format of LFW's pairs.txt.
        data: dataset directory with the images, or several.
        image_size: side of the images, pixels.

    Raises:
        ValueError: a column or a member is missing, a value is out of range, or an image cannot be decoded.
    """
    pairs, is_lfw = read_pairs(local_copy(pairs_csv))
    members = list(dict.fromkeys(member for pair in pairs for member in (pair.a, pair.b)))
    place = {member: i for i, member in enumerate(members)}
    names = [lfw_names(member) if is_lfw else [member] for member in members]
    images, source = _first_found(
        [list(column) for column in zip(*names, strict=True)], data, image_size, str(pairs_csv)
    )
    return PairSet(
        name=Path(split(str(pairs_csv))[1]).stem,
        images=images,
        members=tuple(members),
        source=source,
        a=np.array([place[pair.a] for pair in pairs], np.int64),
        b=np.array([place[pair.b] for pair in pairs], np.int64),
        is_same=np.array([pair.is_same for pair in pairs], bool),
        fold=np.array([pair.fold for pair in pairs], np.int64),
    )


def load_bin(path: str | Path, *, image_size: int) -> PairSet:
    """Read the pairs and images of a .bin file of InsightFace, equal images once.

    Raises:
        ValueError: it is not one, or an image cannot be decoded.
    """
    file = open_bin(normalise(path))
    numbers, place = np.unique(file.first_equal(), return_inverse=True)
    jpegs = [b"" if isinstance(data, ValueError) else data for data in file.read(numbers.tolist())]
    images, bad = decode_images(jpegs, image_size)
    for i, reason in bad.items():
        raise ValueError(f"evaluate.bin: {path}: image {numbers[i]} cannot be decoded: {reason}")
    return PairSet(
        name=Path(split(str(path))[1]).stem,
        images=images,
        a=place[0::2],
        b=place[1::2],
        is_same=file.is_same,
        fold=file.fold,
        digest=hashlib.sha256(b"".join(hashlib.sha256(jpeg).digest() for jpeg in jpegs)).hexdigest(),
    )


def _first_found(
    spellings: list[list[str]], data: str | Path | Sequence[str], image_size: int, pairs: str
) -> tuple[NDArray[np.uint8], ImageRows]:
    """Return the images by the first spelling of the member names that the dataset has."""
    errors = []
    for members in spellings:
        try:
            return _images(members, data, image_size, pairs)
        except MissingMembersError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.count)  # the error of the spelling with the fewest missing members


def rows_of_members(members: Sequence[str], dataset: Dataset, where: str) -> NDArray[np.int64]:
    """Return the rows of members in the index, by key, or by their name in a shard if it is unique.

    Args:
        members: names of tar members.
        where: what names them, for messages.

    Raises:
        MissingMembersError: a member is not in the dataset.
        ValueError: several shards have a member.
    """
    keys = pa.array([parse_name(member).key for member in members], pa.string())
    rows = dataset.find([keys])
    missing = np.flatnonzero(rows < 0)
    if len(missing) and any(dataset.key_prefixes):
        rows[missing], times = find_keys([keys.take(pa.array(missing))], dataset.own_key_batches())
        for place in missing[times > 1].tolist():
            full = dataset.key_prefixes[dataset.index.shard[rows[place]]] + members[place]
            raise ValueError(
                f"{where} name {members[place]}, which several shards of {', '.join(dataset.roots)} have: name "
                f"the shard too, for example {full}"
            )
        missing = np.flatnonzero(rows < 0)
    if len(missing):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingMembersError(
            f"{where} name {members[missing[0]]}{more}, not found in {', '.join(dataset.roots)}: give the "
            "dataset of these images",
            len(missing),
        )
    return rows


def _images(
    members: Sequence[str], data: str | Path | Sequence[str], image_size: int, pairs: str
) -> tuple[NDArray[np.uint8], ImageRows]:
    dataset = open_dataset(data, join="separate")  # labels are not used
    rows = rows_of_members(members, dataset, f"pairs {pairs}")
    order = np.argsort(rows)  # neighbours in a shard are read together
    samples = read_samples([shard.path for shard in dataset.shards], dataset.index.select(rows[order]))
    jpegs = []
    for i, sample in zip(order, samples, strict=True):
        if isinstance(sample, Fault):
            raise ValueError(f"pairs {pairs} need {members[i]}, which is corrupt: {sample}")
        jpegs.append(sample.jpeg)
    images, bad = decode_images(jpegs, image_size)
    for i, reason in bad.items():
        where = ", ".join(dataset.roots)
        raise ValueError(f"pairs {pairs} need {members[order[i]]} of {where}, which cannot be decoded: {reason}")
    return images[np.argsort(order)], ImageRows(dataset=dataset, rows=rows)
