"""The table of nets."""

import pytest

from rayface.backbones import BACKBONES
from rayface.backbones.table import backbone_table


def test_backbone_table_of_all_nets_has_size_and_paper() -> None:
    rows = {row["name"]: row for row in backbone_table()}
    assert list(rows) == list(BACKBONES)
    assert rows["r50"]["parameters"] == 43_590_848
    assert rows["vargfacenet"]["macs"] / 1e9 == pytest.approx(0.5126, rel=1e-3)
    assert all(row["paper"][-10:-6].isdecimal() and "images_per_second" not in row for row in rows.values())


def test_backbone_table_of_a_named_net_measures_it_at_a_size() -> None:
    (row,) = backbone_table(["mini"], embedding_size=32, image_size=32, measure=True, batch_size=1)
    assert (row["embedding_size"], row["image_size"]) == (32, 32)
    assert row["images_per_second"] > 0
