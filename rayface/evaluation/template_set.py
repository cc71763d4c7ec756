"""Lists of template protocols: those of `rayface benchmark make`, and of IJB-B and IJB-C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.storage import DataError, exists, join, normalise, one_line, read_bytes

IJB_IMAGES = "loose_crop"  # the folder of the images in a release
GALLERIES = {"IJBB": ("S1", "S2"), "IJBC": ("G1", "G2")}


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplateSet:
    """Templates of images, pairs of templates (1:1), galleries and probes (1:N).

    Attributes:
        names: name of each image, (n,); an image of two templates is listed twice.
        template, media: template and medium of each image, (n,).
        pairs: (P, 2) templates.
        is_same: (P,) ground truth.
        galleries: templates and identities of each gallery, (G,) each, by name.
        probes: templates and identities of the probes, (Q,) each.
    """

    names: tuple[str, ...]
    template: Ints
    media: Ints
    pairs: Ints
    is_same: NDArray[np.bool_]
    galleries: Mapping[str, tuple[Ints, NDArray[np.str_]]]
    probes: tuple[Ints, NDArray[np.str_]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Landmarks:
    """Five landmarks (x, y) of each image (n, 5, 2), pixels, and the detector's scores (n,)."""

    points: NDArray[np.float64]
    scores: NDArray[np.float64]


def read_benchmark(folder: str) -> TemplateSet:
    """Read the lists that `rayface benchmark make` has written.

    Raises:
        DataError: a file is missing or has other columns; one line.
    """
    root = normalise(folder)

    def lists(name: str) -> tuple[Ints, NDArray[np.str_]]:
        path = join(root, f"{name}.csv")
        table = _table(path, {"template": pa.int64(), "identity": pa.string()})
        return _identified(path, table["template"], table["identity"])

    templates = join(root, "templates.csv")
    if not exists(templates):
        raise DataError(f"{templates}: does not exist: give a folder that `rayface benchmark make` has written")
    images = _table(templates, {"template": pa.int64(), "media": pa.int64(), "path": pa.string()})
    kinds = {"template_a": pa.int64(), "template_b": pa.int64(), "is_same": pa.int64()}
    pairs_path = join(root, "template_pairs.csv")
    pairs = _table(pairs_path, kinds)
    return TemplateSet(
        names=tuple(images["path"].to_pylist()),
        template=images["template"].to_numpy(),
        media=images["media"].to_numpy(),
        pairs=np.column_stack([pairs["template_a"].to_numpy(), pairs["template_b"].to_numpy()]),
        is_same=_truths(pairs_path, pairs["is_same"]),
        galleries={name: lists(name) for name in ("gallery_1", "gallery_2")},
        probes=lists("probes"),
    )


def ijb_root(folder: str, target: str) -> Path:
    """Return the folder that holds meta/ and loose_crop/ of IJB-B or IJB-C: `folder`, or a folder in it.

    Raises:
        DataError: there is none, or it lacks one of the two.
    """
    for root in (Path(folder), Path(folder) / target):
        if (root / "meta").is_dir():
            if not (root / IJB_IMAGES).is_dir():
                raise DataError(f"evaluate.ijb: {root}: has no folder {IJB_IMAGES} beside meta: must hold the images")
            return root
    raise DataError(
        f"evaluate.ijb: {folder}: has no folder meta, nor has {target} in it: must be the folder of the release as "
        "InsightFace packs it, with meta and loose_crop"
    )


def read_ijb(root: Path, target: str) -> tuple[TemplateSet, Landmarks]:
    """Read the meta files of IJB-B or IJB-C.

    Args:
        root: see `ijb_root`.
        target: "IJBB" or "IJBC".

    Raises:
        DataError: a file is missing or malformed; one line.
    """
    meta, prefix = root / "meta", target.lower()
    columns = {"name": pa.string(), "template": pa.int64(), "media": pa.int64()}
    images = _spaced(meta / f"{prefix}_face_tid_mid.txt", columns)
    pairs_path = meta / f"{prefix}_template_pair_label.txt"
    pairs = _spaced(pairs_path, dict.fromkeys(("a", "b", "is_same"), pa.int64()))
    marks = _spaced(
        meta / f"{prefix}_name_5pts_score.txt",
        {"name": pa.string(), **{f"p{i}": pa.float64() for i in range(10)}, "score": pa.float64()},
    )
    names = images["name"].to_pylist()
    if names != marks["name"].to_pylist():
        raise DataError(f"{meta}: {prefix}_face_tid_mid.txt and {prefix}_name_5pts_score.txt list different images")
    galleries = {
        name: _subjects(meta / f"{prefix}_1N_gallery_{name}.csv")
        for name in GALLERIES[target]
        if (meta / f"{prefix}_1N_gallery_{name}.csv").is_file()
    }
    mixed = meta / f"{prefix}_1N_probe_mixed.csv"
    empty = (np.empty(0, np.int64), np.empty(0, np.str_))
    points = np.column_stack([marks[f"p{i}"].to_numpy() for i in range(10)]).reshape(-1, 5, 2)
    found = TemplateSet(
        names=tuple(names),
        template=images["template"].to_numpy(),
        media=images["media"].to_numpy(),
        pairs=np.column_stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()]),
        is_same=_truths(str(pairs_path), pairs["is_same"]),
        galleries=galleries,
        probes=_subjects(mixed) if galleries else empty,
    )
    return found, Landmarks(points=points, scores=marks["score"].to_numpy())


def _subjects(path: Path) -> tuple[Ints, NDArray[np.str_]]:
    """Read templates and subjects: the columns of these names, else the first two."""
    # Not guessed: 0045 would be 45 in a file of numbers only, and 0045 in another one.
    kinds = {"SUBJECT_ID": pa.string(), "TEMPLATE_ID": pa.int64()}
    table = _read(str(path), pc.ParseOptions(), pc.ReadOptions(), kinds)
    if table.num_columns < 2:
        raise DataError(f"{path}: must have the columns TEMPLATE_ID and SUBJECT_ID first")
    is_named = {"TEMPLATE_ID", "SUBJECT_ID"} <= set(table.column_names)
    templates, subjects = (table["TEMPLATE_ID"], table["SUBJECT_ID"]) if is_named else table.columns[:2]
    try:
        return _identified(str(path), templates.cast(pa.int64()), subjects.cast(pa.string()))
    except pa.ArrowException as error:
        raise DataError(f"{path}: must have the columns TEMPLATE_ID and SUBJECT_ID first ({one_line(error)})") from None


def _identified(path: str, templates: pa.ChunkedArray, names: pa.ChunkedArray) -> tuple[Ints, NDArray[np.str_]]:
    """Return templates and their identities without repeats, in the order of the file.

    Raises:
        DataError: a template has no identity, or two.
    """
    ids, identities = templates.to_numpy(), np.array(names.to_pylist(), np.str_)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    for row in np.flatnonzero((identities == "") | (identities != identities[first][inverse]))[:1].tolist():
        others = dict.fromkeys(identities[ids == ids[row]].tolist())
        raise DataError(
            f"{path}: template {ids[row]}: has the identities {', '.join(map(repr, others))}: must have one"
        )
    rows = np.sort(first)
    return ids[rows], identities[rows]


def _truths(path: str, values: pa.ChunkedArray) -> NDArray[np.bool_]:
    given = values.to_numpy()
    for row in np.flatnonzero((given != 0) & (given != 1))[:1].tolist():
        raise DataError(f"{path}: pair {row + 1}: is {given[row]}: must be 1 for the same person, or 0")
    found: NDArray[np.bool_] = given == 1
    return found


def refuse_foreign(where: str, lists: TemplateSet) -> None:
    """Refuse lists of which no template has an image, such as those of another benchmark; some may have none.

    Raises:
        DataError: one line.
    """
    if not lists.names:
        raise DataError(f"{where}: lists no image of a template")
    of_list = {"pairs": lists.pairs.ravel(), "probes": lists.probes[0]}
    of_list |= {name: templates for name, (templates, _) in lists.galleries.items()}
    for name, templates in of_list.items():
        if len(templates) and not np.isin(templates, lists.template).any():
            raise DataError(
                f"{where}: {name}: no template has an image, for example {templates[0]}: give lists that fit"
            )


def _spaced(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    options = pc.ReadOptions(column_names=list(columns))
    return _read(str(path), pc.ParseOptions(delimiter=" "), options, columns)


def _table(path: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
    table = _read(path, pc.ParseOptions(), pc.ReadOptions(), columns)
    _refuse_missing(path, table, list(columns))
    return table


def _refuse_missing(path: str, table: pa.Table, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in table.column_names]:
        raise DataError(f"{path}: has no column {missing[0]}; it has {', '.join(table.column_names)}")


def _read(path: str, parse: pc.ParseOptions, read: pc.ReadOptions, columns: Mapping[str, pa.DataType]) -> pa.Table:
    convert = pc.ConvertOptions(column_types=dict(columns), strings_can_be_null=False)
    try:
        content = pa.BufferReader(read_bytes(path))
        table = pc.read_csv(content, parse_options=parse, read_options=read, convert_options=convert)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from None
    _refuse_incomplete(path, table, columns)
    return table


def _refuse_incomplete(path: str, table: pa.Table, columns: Mapping[str, pa.DataType]) -> None:
    """Refuse a column that occurs twice, and a number or text that is missing; a missing float is NaN."""
    for name in (name for name in columns if name in table.column_names):
        if table.column_names.count(name) > 1:
            raise DataError(f"{path}: has the column {name} twice")
        if table[name].null_count and not pa.types.is_floating(table[name].type):
            row = int(compute.index(compute.is_null(table[name]), pa.scalar(True)).as_py())
            raise DataError(f"{path}: row {row + 1}: has no {name}")
