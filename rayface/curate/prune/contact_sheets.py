"""Contact sheets: images beside those for which they were dropped, or similar ones, with cosines."""

import base64
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import simplejpeg

from rayface.curate.clean.findings import Findings
from rayface.curate.cosines import unit_rows
from rayface.curate.prune.sampled_images import Identity
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.report import Face, Row, Sheet

_FACES_A_ROW = 12
_ROWS = 12
_PIXELS = 112
_FOUND_SHEETS = (
    ("Strongest outliers", "With the cosine to the mean of their identity, beside other images of it."),
    (
        "Most similar identities",
        "With the cosine of their centers: one person under two names, or two similar persons.",
    ),
    ("Images that two identities share", "With the cosine of the two images."),
    ("Equal files", "The second of the two is kept."),
    ("Identities of the test set", "With the cosine of the centers."),
)


def dropped_sheet(identities: Sequence[Identity], names: Mapping[int, str]) -> Sheet:
    """Return the sheet of kept images with those dropped for them; without pairs, of kept and dropped images."""
    rows: list[Row] = []
    for identity in identities:
        kept, total = int(np.count_nonzero(identity.kept)), len(identity.kept)
        if kept < total and len(rows) < _ROWS:
            groups = _groups(identity)
            shown = [sum(face.kind == kind for group in groups for face in group) for kind in ("kept", "dropped")]
            who = f"{_name(identity.label, names)}: {kept} of {total} kept{_not_shown(kept, total - kept, *shown)}"
            rows.append(Row(who=who, groups=groups))
    return Sheet(
        title="Kept and dropped",
        caption="Green: kept. Orange: dropped for the first image of its group, with the cosine of the two.",
        rows=rows,
    )


def _not_shown(kept: int, dropped: int, kept_shown: int, dropped_shown: int) -> str:
    """Return how many images a row leaves out, "" if it shows all that the counts say."""
    hidden = [(kept - kept_shown, "kept"), (dropped - dropped_shown, "dropped")]
    parts = [f"{count:,} {kind}" for count, kind in hidden if count]
    return f"; not shown: {' and '.join(parts)}" if parts else ""


def _groups(identity: Identity) -> list[list[Face]]:
    units = unit_rows(identity.embeddings, np.arange(len(identity.kept)))
    place = {key: row for row, key in enumerate(identity.keys)}
    dropped_for: dict[int, list[int]] = {}
    for row, by in enumerate(identity.suppressed_by):
        if by is not None:
            dropped_for.setdefault(place[by], []).append(row)
    groups, left = [], _FACES_A_ROW
    for keeper, rows in sorted(dropped_for.items(), key=lambda item: -len(item[1])):
        if left < 2:
            break
        faces = [Face(key=identity.keys[keeper], caption="kept", kind="kept")]
        for row in rows[: left - 1]:
            faces.append(Face(key=identity.keys[row], caption=f"{units[keeper] @ units[row]:.3f}", kind="dropped"))
        groups.append(faces)
        left -= len(faces)
    if groups:
        alone = [row for row in np.flatnonzero(identity.kept).tolist() if row not in dropped_for]
        faces = [Face(key=identity.keys[row], caption="kept", kind="kept") for row in alone[:left]]
        return [*groups, faces] if faces else groups
    for kind, flag in (("kept", True), ("dropped", False)):
        few = np.flatnonzero(identity.kept == flag)[: _FACES_A_ROW // 2]
        groups.append([Face(key=identity.keys[row], caption=identity.reasons[row], kind=kind) for row in few])
    return groups


def found_sheets(report: Findings, keys_of: Mapping[int, Sequence[str]], names: Mapping[int, str]) -> list[Sheet]:
    """Return the sheets of the findings of cleaning, in the order of _FOUND_SHEETS; sheets without rows are omitted."""
    outliers = [
        Row(
            who=_name(row["label"], names),
            groups=[
                [Face(key=row["key"], caption=f"{row['cosine']:.3f}", kind="dropped")],
                [Face(key=key) for key in keys_of.get(row["label"], ()) if key != row["key"]][:5],
            ],
        )
        for row in report.outliers.slice(0, _ROWS).to_pylist()
    ]
    alike = [
        Row(
            who=f"{_name(row['label'], names)} and {_name(row['other_label'], names)}: {row['cosine']:.3f}",
            groups=[[Face(key=key) for key in keys_of.get(row[side], ())[:5]] for side in ("label", "other_label")],
        )
        for row in report.duplicates.slice(0, _ROWS).to_pylist()
    ]
    shared = [
        Row(
            who=f"{_name(row['label'], names)} and {_name(row['other_label'], names)}: {row['cosine']:.3f}",
            groups=[[Face(key=row["key"]), Face(key=row["other_key"])]],
        )
        for row in report.conflicts.slice(0, _ROWS).to_pylist()
    ]
    equal = [
        Row(
            who=" and ".join(dict.fromkeys(_name(row[side], names) for side in ("label", "other_label"))),
            groups=[[Face(key=row["key"]), Face(key=row["other_key"])]],
        )
        for row in report.bytes.slice(0, _ROWS).to_pylist()
    ]
    tested = [
        Row(
            who=f"{_name(row['label'], names)} and label {row['test_label']} of the test set: {row['cosine']:.3f}",
            groups=[[Face(key=key) for key in keys_of.get(row["label"], ())]],
        )
        for row in report.test.slice(0, _ROWS).to_pylist()
    ]
    rows = (outliers, alike, shared, equal, tested)
    sheets = [
        Sheet(title=title, caption=caption, rows=own) for (title, caption), own in zip(_FOUND_SHEETS, rows, strict=True)
    ]
    return [sheet for sheet in sheets if sheet.rows]


def labels_shown(report: Findings) -> list[int]:
    """Return the labels whose images `found_sheets` looks up in keys_of."""
    sides = [report.duplicates["other_label"]]
    sides += [table["label"] for table in (report.outliers, report.duplicates, report.test)]
    return sorted({label for side in sides for label in side.slice(0, _ROWS).to_pylist()})


def add_pictures(sheets: Sequence[Sheet], dataset: Dataset) -> None:
    """Read the images of the sheets from a dataset, each once; unreadable ones stay empty.

    Memory: these images.
    """
    groups = itertools.chain.from_iterable(row.groups for sheet in sheets for row in sheet.rows)
    faces = list(itertools.chain.from_iterable(groups))
    wanted = sorted({face.key for face in faces})
    places = dataset.find([pa.array(wanted, pa.string())])
    known = [key for key, place in zip(wanted, places.tolist(), strict=True) if place >= 0]
    index = dataset.index.select(places[places >= 0])
    pictures = {}
    for key, sample in zip(known, read_samples(dataset.shard_paths(), index), strict=True):
        if not isinstance(sample, Fault):
            pictures[key] = _picture(sample.jpeg)
    for face in faces:
        face.jpeg = pictures.get(face.key, "")


def _picture(jpeg: bytes) -> str:
    """Re-encode the image: small, and without other content."""
    try:
        image = decode_image(jpeg, _PIXELS)
    except ValueError:
        return ""
    return base64.b64encode(simplejpeg.encode_jpeg(image, quality=85)).decode()


def _name(label: int, names: Mapping[int, str]) -> str:
    return names.get(label, f"label {label}")
