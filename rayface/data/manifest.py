"""Files next to the shards: dataset.json, identities.parquet and index.parquet; models, validation and readers."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from rayface.credentials import mask, masked
from rayface.data.classes import MAX_LABEL
from rayface.data.keys import batches_of, key_hashes, repeated_key
from rayface.data.shards.scan import ShardScan, joint_table
from rayface.storage import DataError, join, one_line, read_bytes, require_known_server
from rayface.storage.parquet import open_parquet
from rayface.values import counted

MANIFEST = "dataset.json"
INDEX = "index.parquet"
IDENTITIES = "identities.parquet"
PAIRS = "pairs.csv"  # verification pairs of the images, for `rayface evaluate --pairs`
UNFINISHED = ".unfinished"  # exists in a folder while the dataset is written


class ShardEntry(BaseModel):
    """A shard in dataset.json: `path` is a file name in the folder; in a selection, the path or URI of a shard."""

    path: str
    num_images: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    sha256: str | None = None
    key_prefix: str = ""
    """Prefix of the shard's own keys in index.parquet, if those are not unique in the dataset."""


class Parent(BaseModel, extra="allow"):
    """The dataset that another one was made from: its path, or paths if several were opened as one, and its digest."""

    path: str | list[str] = ""
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Description of a dataset.

    Attributes:
        image_size: (height, width); None if images differ.
        layout: "shuffled" or "by_identity".
        source: origin of the images.
        parent: the dataset from which it was made.
        created_by: program and version.
    """

    name: str
    image_size: tuple[int, int] | None
    layout: Literal["shuffled", "by_identity"]
    licence: str
    source: str
    parent: Parent | None
    created_by: str


class Manifest(BaseModel):
    """dataset.json."""

    name: str
    num_classes: int = Field(ge=1, le=MAX_LABEL + 1)
    num_images: int = Field(ge=0)
    image_size: tuple[int, int] | None = None
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    licence: str = ""
    source: str = ""
    parent: Parent | None = None
    created_by: str = ""
    selection: str | None = None
    """For a dataset that selects samples of shards elsewhere: sha256 of the selection; index.parquet lists them."""
    identities: str | None = None
    """Digest of the names in identities.parquet, see `names_digest`, for `rayface check`."""
    shards: list[ShardEntry]

    def to_json(self) -> bytes:
        unset = {name for name in ("selection", "identities") if not getattr(self, name)}
        fields = self.model_dump(exclude={"shards", *unset})
        fields["shards"] = [
            entry.model_dump(exclude=set() if entry.key_prefix else {"key_prefix"}) for entry in self.shards
        ]
        return (json.dumps(masked(fields), indent=1, ensure_ascii=False) + "\n").encode()


def recount(root: str) -> str:
    """Return the remedy for a dataset.json that is wrong."""
    return f"run `rayface check --write-manifest {shlex.quote(root)}` to recount the shards"


def read_manifest(root: str) -> Manifest:
    """Read and validate dataset.json; DataError names the first field that is wrong."""
    path = join(root, MANIFEST)
    try:
        manifest = Manifest.model_validate_json(read_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(f"{path}: {where}: {first['msg']}; {recount(root)}") from None
    for entry in manifest.shards:
        if manifest.selection is not None:
            require_known_server(entry.path, f"{path}: shards")
        elif "/" in entry.path or entry.path in ("", ".", ".."):
            raise DataError(f"{path}: shards: {entry.path!r} must be the name of a file in this folder")
    return manifest


def read_identities(root: str, num_classes: int, *, exact: bool) -> list[str]:
    """Return the identity names by label.

    There must be `num_classes` names, or at least as many unless `exact`: identities without an image are allowed.

    Raises:
        DataError: names are not unique, or labels are not 0, 1, 2, ...
    """
    path = join(root, IDENTITIES)
    table = read_parquet(path, ["label", "identity"])
    order = np.argsort(table["label"].to_numpy(), kind="stable")
    count = num_classes if exact else max(num_classes, len(order))
    # Compare the number of rows first: num_classes may be any number.
    if len(order) != count or not np.array_equal(table["label"].to_numpy()[order], np.arange(count)):
        raise DataError(f"{path}: label: must be every number from 0 to {count - 1} once")
    names = table["identity"].take(pa.array(order))
    if repeated_key(key_hashes(batches_of(names)), batches_of(names)) is not None:
        raise DataError(f"{path}: identity: names must be unique, because datasets are joined by them")
    return names.to_pylist()


def names_digest(names: Sequence[str]) -> str:
    """Return the sha256 of identity names by label; users may add columns to identities.parquet."""
    digest = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        digest.update(b"%d %s" % (len(encoded), encoded))
    return digest.hexdigest()


def read_parquet(path: str, columns: list[str]) -> pa.Table:
    """Read columns of a parquet file; DataError if it is corrupt or lacks one."""
    try:
        # Not read_table, which takes a folder named a=b for a partition and adds a column.
        with open_parquet(path) as file:
            return file.read(columns=columns).select(columns)
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: not a parquet file with columns {', '.join(columns)} ({one_line(error)})") from None


def manifest_of_scan(root: str, names: list[str], scans: list[ShardScan]) -> Manifest:
    """Return the manifest of a bare directory from the scans of its shards; DataError if no sample is readable."""
    labels = joint_table(scans)["label"].to_numpy()
    if not len(labels):
        faults = [fault for scan in scans for fault in scan.faults]
        why = f"; the first fault: {faults[0]}" if faults else ""
        raise DataError(f"{root}: no readable sample (an image and its label) in {counted(len(names), 'shard')}{why}")
    # Guess the layout: if most neighbours are of one class, it is by identity.
    neighbours = float(np.mean(labels[1:] == labels[:-1])) if len(labels) > 1 else 0.0
    sizes = {scan.image_size for scan in scans if scan.image_size}
    return Manifest(
        name=root.partition("?")[0].rstrip("/").rpartition("/")[2],
        num_classes=int(labels.max()) + 1,
        num_images=len(labels),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        layout="by_identity" if neighbours > 0.5 and labels.min() != labels.max() else "shuffled",
        shards=shard_entries(names, scans),
    )


def shard_entries(names: list[str], scans: list[ShardScan]) -> list[ShardEntry]:
    """Return the manifest's entries of scanned shards."""
    return [
        ShardEntry(
            path=name,
            num_images=len(scan.table),
            num_bytes=scan.num_bytes,
            sha256=scan.sha256,
            key_prefix=scan.key_prefix,
        )
        for name, scan in zip(names, scans, strict=True)
    ]


def digest_of(manifest: Manifest) -> str:
    """Return the sha256 over the shards' digests (names and sizes if a digest is missing) and the selection."""
    full = all(entry.sha256 for entry in manifest.shards)
    lines = [entry.sha256 if full else f"{mask(entry.path)} {entry.num_bytes}" for entry in manifest.shards]
    lines += [manifest.selection] if manifest.selection else []
    return hashlib.sha256("\n".join(str(line) for line in lines).encode()).hexdigest()
