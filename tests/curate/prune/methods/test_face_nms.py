"""Face-NMS as a selection method: its settings, its threshold, and a bonus for images apart from all others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.config import PruneConfig
from rayface.curate.cosines import unit_rows
from rayface.curate.face_nms import sparsity_scores, suppress_many
from rayface.curate.prune.methods import face_nms as module
from rayface.curate.prune.methods.face_nms import FaceNMS
from rayface.curate.prune.selection import Selector
from rayface.curate.prune.selection_method import Images


def images_of(drawn: Any, sizes: list[int]) -> Images:
    embeddings, offsets = drawn(sizes, size=8)
    rows = np.arange(len(embeddings))
    keys = pa.array([f"k{row}" for row in rows])
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return Images(keys=keys, labels=labels, embeddings=embeddings, offsets=offsets, part=0, rows=rows)


def test_face_nms_of_settings_takes_threshold_minimum_and_weight() -> None:
    settings = PruneConfig(threshold=0.5, min_images=3, global_weight=0.25)
    assert FaceNMS.from_settings(settings) == FaceNMS(threshold=0.5, min_images=3, global_weight=0.25)
    assert FaceNMS.from_settings(PruneConfig(keep=0.5)).threshold == 1.0  # searched later


def test_face_nms_at_a_position_changes_the_threshold_alone() -> None:
    method = FaceNMS(threshold=0.5, min_images=3, global_weight=0.25)
    assert method.at(-0.2) == FaceNMS(threshold=-0.2, min_images=3, global_weight=0.25)
    assert method.at(0.5).fingerprint() == method.fingerprint()


def test_face_nms_without_a_weight_selects_as_suppress_many_and_needs_no_statistics(
    drawn: Any, make_selector: Callable[..., Selector]
) -> None:
    method, images = FaceNMS(threshold=0.6, min_images=2), images_of(drawn, [5, 9, 3])
    assert method.prepare(make_selector([3], 9).stats) is None
    found = method.select(images, None)
    wanted = suppress_many(images.embeddings, images.offsets, 0.6, min_images=2)
    assert all((mine == own).all() for mine, own in zip(found, wanted, strict=True))


def test_face_nms_with_a_weight_ranks_images_far_from_the_mean_direction_first(
    drawn: Any, make_selector: Callable[..., Selector]
) -> None:
    method, images = FaceNMS(threshold=0.6, global_weight=0.5), images_of(drawn, [5, 9, 3])
    stats = make_selector([3, 4], 9).stats
    mean = method.prepare(stats)
    assert mean is not None
    np.testing.assert_array_equal(mean, stats.mean_direction)
    found = method.select(images, mean)
    along = unit_rows(images.embeddings, images.rows) @ mean
    np.testing.assert_allclose(
        found.score[5:14], sparsity_scores(images.embeddings[5:14]) + 0.5 * (1 - along[5:14]), atol=1e-6
    )


def test_compared_in_part_counts_identities_that_keep_more_than_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat([0, 1, 2], [6, 6, 2])
    kept = np.r_[np.ones(6, bool), np.arange(6) < 2, np.ones(2, bool)]
    pq.write_table(pa.table({"label": labels, "kept": kept}), tmp_path / "core_set.parquet")
    sizes, method = np.array([6, 6, 2]), FaceNMS(threshold=0.5)
    assert method.compared_in_part(sizes, tmp_path / "missing.parquet") == 0  # none is so large
    monkeypatch.setattr(module, "MAX_COMPARED", 4)
    assert method.compared_in_part(sizes, tmp_path / "core_set.parquet") == 1
