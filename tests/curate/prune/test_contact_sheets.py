"""Contact sheets: which images stand beside which, with which cosine, and how many."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayface.curate.clean.findings import Findings
from rayface.curate.prune import contact_sheets
from rayface.curate.prune.contact_sheets import (
    Face,
    Row,
    Sheet,
    add_pictures,
    dropped_sheet,
    found_sheets,
    labels_shown,
)
from rayface.curate.prune.sampled_images import Identity
from tests.keyed_dataset import grey, keyed_dataset


def identity(kept: list[bool], by: list[str | None], label: int = 4) -> Identity:
    """Images a, b, c, ... whose embeddings stand at 0, 60, 120, ... degrees."""
    angles = np.deg2rad(60 * np.arange(len(kept)))
    return Identity(
        label=label,
        keys=list("abcdefgh"[: len(kept)]),
        kept=np.array(kept),
        suppressed_by=by,
        reasons=["kept" if each else "not selected" for each in kept],
        embeddings=np.stack([np.cos(angles), np.sin(angles)], axis=1),
    )


def findings(**tables: Any) -> Findings:
    empty = pa.table({"label": pa.array([], pa.int64()), "other_label": pa.array([], pa.int64())})
    names = ("outliers", "duplicates", "conflicts", "bytes", "test")
    return Findings(**{**dict.fromkeys(names, empty), **tables}, num_dropped={})


def test_dropped_sheet_shows_each_dropped_image_beside_the_one_it_was_dropped_for() -> None:
    (row,) = dropped_sheet([identity([True, False, True], [None, "a", None])], {4: "ann"}).rows
    assert row.who == "ann: 2 of 3 kept"
    shown = [[(face.key, face.caption, face.kind) for face in group] for group in row.groups]
    assert shown == [[("a", "kept", "kept"), ("b", "0.500", "dropped")], [("c", "kept", "kept")]]


def test_dropped_sheet_of_a_method_without_pairs_shows_kept_and_dropped_images() -> None:
    (row,) = dropped_sheet([identity([True, False], [None, None])], {}).rows
    assert row.who == "label 4: 1 of 2 kept"
    shown = [[(face.key, face.caption, face.kind) for face in group] for group in row.groups]
    assert shown == [[("a", "kept", "kept")], [("b", "not selected", "dropped")]]


def test_dropped_sheet_of_a_large_identity_says_how_many_are_not_shown(monkeypatch) -> None:
    monkeypatch.setattr(contact_sheets, "_FACES_A_ROW", 4)
    kept = [True, False, False, True, True, True]
    (row,) = dropped_sheet([identity(kept, [None, "a", "a", None, None, None])], {}).rows
    faces = [face for group in row.groups for face in group]
    assert row.who == "label 4: 4 of 6 kept; not shown: 2 kept"
    assert len(faces) == 4


def test_dropped_sheet_of_many_identities_is_bounded_and_leaves_out_whole_ones() -> None:
    whole, pruned = identity([True, True], [None, None]), identity([True, False], [None, "a"])
    assert dropped_sheet([whole], {}).rows == []
    assert len(dropped_sheet([pruned] * 40, {}).rows) == 12


def test_found_sheets_of_each_kind_name_labels_and_cosines() -> None:
    report = findings(
        outliers=pa.table({"key": ["a"], "label": [1], "cosine": [0.125]}),
        duplicates=pa.table({"label": [1], "other_label": [2], "cosine": [0.875]}),
        test=pa.table({"label": [2], "test_label": [7], "cosine": [0.5]}),
    )
    keys = {1: ["a", "b", "c"], 2: ["d"]}
    outliers, alike, tested = found_sheets(report, keys, {1: "ann"})
    assert [face.key for face in outliers.rows[0].groups[1]] == ["b", "c"]
    assert outliers.rows[0].groups[0][0].caption == "0.125"
    assert alike.rows[0].who == "ann and label 2: 0.875"
    assert tested.rows[0].who == "label 2 and label 7 of the test set: 0.500"
    assert labels_shown(report) == [1, 2]


def test_add_pictures_by_key_reads_each_image_and_leaves_unknown_ones_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = keyed_dataset(tmp_path, monkeypatch)
    sheet = Sheet(title="", caption="", rows=[Row(who="", groups=[[Face(key="b/1.tar/0"), Face(key="1.tar/0")]])])
    monkeypatch.setattr(contact_sheets, "_picture", lambda jpeg: jpeg)
    add_pictures([sheet], dataset)
    assert [face.jpeg for face in sheet.rows[0].groups[0]] == [grey(90), ""]
