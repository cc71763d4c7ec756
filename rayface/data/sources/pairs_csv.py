"""The file pairs.csv beside a dataset, for `rayface evaluate --pairs`."""

import csv
import io
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.manifest import PAIRS
from rayface.data.shards.members import parse_name
from rayface.storage import DataError, join, read_bytes, write_bytes
from rayface.values import counted

logger = logging.getLogger(__name__)


def write_pairs_csv(
    dataset: Dataset, a: Sequence[str], b: Sequence[str], is_same: NDArray[np.bool_], fold: NDArray[np.int64]
) -> None:
    """Write the pairs (P,) of keys whose images are in the dataset; the others are counted in the log."""
    present = set(dataset.keys())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path_a", "path_b", "is_same", "fold"))
    num_lost = 0
    for key_a, key_b, same, number in zip(a, b, is_same.tolist(), fold.tolist(), strict=True):
        if key_a in present and key_b in present:
            writer.writerow((f"{key_a}.jpg", f"{key_b}.jpg", int(same), number))
        else:
            num_lost += 1
    root = dataset.roots[0]
    if num_lost:
        logger.warning("%s: %d of %s left out: an image of each is lost", root, num_lost, counted(len(a), "pair"))
    write_bytes(join(root, PAIRS), text.getvalue().encode())


def read_pairs_csv(path: str) -> tuple[pa.Array, list[bool]]:
    """Return the keys (2P,) of the pairs' images, those of a pair next to each other, and whether they are one person.

    Pairs are in the order of their folds.

    Raises:
        DataError: a column is missing, or a value is out of range.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")))
        rows.sort(key=lambda row: int(row["fold"]))
        is_same = [{"0": False, "1": True}[row["is_same"]] for row in rows]
        keys = [parse_name(row[name]).key for row in rows for name in ("path_a", "path_b")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: must be a csv with path_a,path_b,is_same,fold ({error!r})") from None
    if not rows:
        raise DataError(f"{path}: has no pairs")
    return pa.array(keys, pa.string()), is_same
