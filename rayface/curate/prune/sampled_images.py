"""Data of a core set for the report: counts of every identity, and the images of some."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayface.arrays import Bools, Floats, Ints
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.rows import read_found
from rayface.storage.parquet import open_parquet

_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The n images of an identity and the decisions about them, by key."""

    label: int
    keys: list[str]
    kept: Bools
    suppressed_by: list[str | None]
    reasons: list[str]
    embeddings: Floats


def identity_counts(core_set: Path) -> tuple[Ints, Ints, Ints]:
    """Return the labels of a core set, rising, and how many images each has and keeps. Memory: a block of rows."""
    labels: list[Ints] = []
    counts: list[Ints] = []
    for table in _tables(str(core_set), ["label", "kept"]):
        own, place = np.unique(table["label"].to_numpy(), return_inverse=True)
        kept = np.bincount(place, weights=table["kept"].to_numpy()).astype(np.int64)
        labels.append(own)
        counts.append(np.stack([np.bincount(place), kept], axis=1))
    names, place = np.unique(np.concatenate(labels), return_inverse=True)
    sums = np.zeros((len(names), 2), np.int64)
    np.add.at(sums, place, np.concatenate(counts))
    return names, sums[:, 0], sums[:, 1]


def read_identities(core_set: Path, source: Embeddings, labels: Sequence[int]) -> list[Identity]:
    """Return identities by label, in the order of `labels`; embeddings are found by key, because labels may be merged.

    Reads keys of all, embeddings only of the row groups that hold a wanted one.
    """
    if not labels:
        return []
    columns = ["key", "label", "kept", "suppressed_by", "reason"]
    decided = _where(_tables(str(core_set), columns), "label", pa.array(labels, pa.int64()))
    decided = decided.sort_by([("label", "ascending"), ("key", "ascending")])
    keys = decided["key"].combine_chunks()
    rows = [rows for file in source.files for rows in read_found(file.path, keys)]
    if not rows:
        return []
    values = np.concatenate([each.embeddings for each in rows])
    places = pc.index_in(decided["key"], value_set=pa.concat_arrays([each.keys for each in rows]))
    decided, places = decided.filter(pc.is_valid(places)), places.drop_null().to_numpy()
    own = decided["label"].to_numpy()
    found = {}
    for label in np.unique(own).tolist():
        rows = decided.filter(pa.array(own == label)).to_pydict()
        found[label] = Identity(
            label=label,
            keys=rows["key"],
            kept=np.array(rows["kept"]),
            suppressed_by=rows["suppressed_by"],
            reasons=rows["reason"],
            embeddings=values[places[own == label]],
        )
    return [found[label] for label in labels if label in found]


def keys_of(faces: Path, labels: Sequence[int], most: int) -> dict[int, list[str]]:
    """Return up to `most` keys of each label, from a parquet file with both."""
    if not labels:
        return {}
    table = _where(_tables(str(faces), ["key", "label"]), "label", pa.array(labels, pa.int64()))
    found: dict[int, list[str]] = {}
    for key, label in zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True):
        if len(found.setdefault(label, [])) < most:
            found[label].append(key)
    return found


def _tables(path: str, columns: list[str]) -> Iterator[pa.Table]:
    """Yield a file in blocks of rows."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _where(tables: Iterable[pa.Table], column: str, wanted: pa.Array) -> pa.Table:
    """Return the rows with a wanted value."""
    return pa.concat_tables(
        table.filter(pc.is_in(table[column].cast(wanted.type), value_set=wanted)) for table in tables
    )
