"""Groups of images, such as race or mask, from columns of a table or of a dataset's identities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.label_join import normalised
from rayface.data.manifest import IDENTITIES
from rayface.storage import DataError, join, normalise, one_line, read_bytes
from rayface.storage.parquet import open_parquet

Groups = Mapping[str, NDArray[np.object_]]
_KEYS = ("key", "identity", "label")


def load_groups(dataset: Dataset, columns: Sequence[str], table: str | None) -> Groups:
    """Return the group of every image, by column; None for an image without one.

    Args:
        dataset: the images.
        columns: names of the columns.
        table: CSV or parquet file with a column key, identity or label, and the groups, which are read as text; None:
            identities.parquet of the dataset.

    Raises:
        DataError: the file cannot be read, lacks a column, names none of the images, or one twice in different groups.
    """
    if not columns:
        return {}
    path = normalise(table) if table is not None else join(dataset.roots[0], IDENTITIES)
    if table is None and len(dataset.roots) > 1:
        raise DataError("evaluate.groups: is not set: must be a table of the groups if there are several datasets")
    rows = _read(path, columns)
    by = next((name for name in _KEYS if name in rows.column_names), None)
    missing = [name for name in columns if name not in rows.column_names]
    if by is None or missing:
        lacks = missing[0] if missing else f"one of {', '.join(_KEYS)}"
        raise DataError(f"{path}: has no column {lacks}; it has {', '.join(rows.column_names)}")
    _refuse_repeated(path, rows, by, columns)
    place = _places(dataset, by, rows[by].to_pylist())
    if not (place >= 0).any():
        raise DataError(f"{path}: column {by}: names none of the images of {', '.join(dataset.roots)}")
    found = {}
    for name in columns:
        values = np.array([*map(_text, rows[name].to_pylist()), None], object)
        found[name] = values[place]
    return found


def _refuse_repeated(path: str, rows: pa.Table, by: str, columns: Sequence[str]) -> None:
    if twice := [name for name in (by, *columns) if rows.column_names.count(name) > 1]:
        raise DataError(f"{path}: has the column {twice[0]} twice")
    distinct = rows.select(list(dict.fromkeys((by, *columns)))).to_pandas().dropna(subset=[by]).drop_duplicates()
    for name in distinct[by][distinct[by].duplicated()].tolist():
        raise DataError(f"{path}: {by} {name}: has two rows with different groups: must have one")


def _read(path: str, columns: Sequence[str]) -> pa.Table:
    # Not guessed: 0000045 would become 45.
    texts = dict.fromkeys({"key", "identity", *columns} - {"label"}, pa.string())
    options = pc.ConvertOptions(column_types=texts)
    try:
        if path.endswith(".parquet"):
            with open_parquet(path) as file:
                names = set(file.schema_arrow.names)
                if not names.issuperset(columns) or names.isdisjoint(_KEYS):
                    return file.schema_arrow.empty_table()
                return file.read([name for name in dict.fromkeys((*_KEYS, *columns)) if name in names])
        return pc.read_csv(pa.BufferReader(read_bytes(path)), convert_options=options)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table ({one_line(error)})") from None


def _places(dataset: Dataset, by: str, values: Sequence[object]) -> NDArray[np.int64]:
    """Return the row of the table of every image, -1 for none."""
    if by == "key":
        places = np.full(dataset.num_images + 1, -1, np.int64)
        places[dataset.find([pa.array([str(value) for value in values], pa.string())])] = np.arange(len(values))
        return places[:-1]
    if by == "identity":
        if dataset.identities is None:
            raise DataError(f"{', '.join(dataset.roots)}: has no names of identities: give a table with label or key")
        label_of = {name: label for label, name in enumerate(dataset.identities)}
        labels = [label_of.get(normalised(str(value)), -1) for value in values]
    else:
        labels = [value if isinstance(value, int) and 0 <= value < dataset.num_classes else -1 for value in values]
    by_label = np.full(dataset.num_classes + 1, -1, np.int64)
    by_label[labels] = np.arange(len(labels))
    found: NDArray[np.int64] = by_label[dataset.index.label]
    return found


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
