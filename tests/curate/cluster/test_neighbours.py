"""Nearest neighbours: those of a full sort, in blocks of any size, with duplicates and fewer images than neighbours."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.cluster import neighbours as module
from rayface.curate.cluster.neighbours import Neighbours, merged, nearest, no_neighbours, search, unique_edges


def units(count: int, size: int = 16, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((count, size))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 40, 1000])
def test_nearest_in_blocks_equals_a_full_sort(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    x = units(90)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -9)
    found = nearest(x, 5)
    assert (found.rows == np.argsort(-cosines, axis=1, kind="stable")[:, :5]).all()
    assert found.cosines == pytest.approx(-np.sort(-cosines, axis=1)[:, :5], abs=1e-6)


def test_nearest_of_some_rows_equals_those_of_all() -> None:
    x = units(50)
    found = search(x[20:30], np.arange(20, 30), [(0, x[:33]), (33, x[33:])], 4)
    assert (found.rows == nearest(x, 4).rows[20:30]).all()


def test_nearest_of_duplicates_leaves_out_only_the_image_itself() -> None:
    found = nearest(np.repeat(units(3), 6, axis=0), 4)
    own = np.arange(18)[:, None]
    assert not (found.rows == own).any()
    assert (found.rows // 6 == own // 6).all()
    assert found.cosines == pytest.approx(1, abs=1e-6)


def test_nearest_of_fewer_images_than_neighbours_pads_with_minus_one() -> None:
    found = nearest(units(3), 5)
    assert (found.rows[:, 2:] == -1).all()
    assert (found.cosines[:, 2:] == -2).all()
    assert sorted(found.rows[0, :2].tolist()) == [1, 2]


def test_nearest_of_opposite_images_finds_them() -> None:
    found = nearest(np.array([[1, 0], [-1, 0]], np.float32), 1)
    assert (found.rows.tolist(), found.cosines.tolist()) == ([[1], [0]], [[-1], [-1]])


def test_merged_neighbours_of_equal_cosine_are_by_row() -> None:
    before = replace(no_neighbours(1), rows=np.full((1, 20), -1), cosines=np.full((1, 20), -2, np.float32))
    rows = np.random.default_rng(0).permutation(40)[None]
    found = merged(before, rows, np.float32(0.5) + (rows >= 30).astype(np.float32) / 4, np.array([33]))
    assert found.rows.tolist() == [[30, 31, 32, *range(34, 40), *range(11)]]


def test_unique_edges_keep_each_pair_once_and_no_loops() -> None:
    cosines = np.array([0.5, 0.5, 0.9, 0.1], np.float32)
    edges = unique_edges(np.array([3, 1, 2, 0]), np.array([1, 3, 2, 2]), cosines)
    assert (edges.a.tolist(), edges.b.tolist()) == ([0, 1], [2, 3])
    assert edges.values == pytest.approx([0.1, 0.5])


def test_edges_keep_cosines_at_the_threshold() -> None:
    near = Neighbours(rows=np.array([[1], [0]]), cosines=np.full((2, 1), 0.5, np.float32))
    assert (near.edges(0.5).a.tolist(), near.edges(0.5).b.tolist()) == ([0], [1])


def test_edges_leave_out_cosines_below_the_threshold() -> None:
    x = units(40)
    edges = nearest(x, 6).edges(0.4)
    assert len(edges.a) > 0
    assert (np.einsum("nd,nd->n", x[edges.a], x[edges.b]) >= 0.4 - 1e-6).all()
    assert len({*zip(edges.a.tolist(), edges.b.tolist(), strict=True)}) == len(edges.a)


def test_neighbours_within_labels_are_those_of_the_same_label_nearest_first() -> None:
    x, labels = units(60), np.arange(60) % 3
    near = nearest(x, 20)
    own = near.within(labels)
    for row in range(60):
        same = [other for other in near.rows[row].tolist() if labels[other] == labels[row]]
        assert own.rows[row].tolist() == same + [-1] * (20 - len(same))
        assert (np.diff(own.cosines[row]) <= 0).all()
        assert (own.cosines[row, len(same) :] == -2).all()


def test_edges_of_int32_rows_equal_those_of_int64() -> None:
    near = nearest(units(60), 20)
    small = replace(near, rows=near.rows.astype(np.int32))
    for own, other in ((near.edges(0.1), small.edges(0.1)), (near.within(np.arange(60) % 2), None)):
        other = other or small.within(np.arange(60) % 2)
        for name, values in vars(own).items():
            assert (values == getattr(other, name)).all()
    assert small.edges(0.1).a.dtype == small.edges(0.1).b.dtype == np.int32


def test_neighbours_within_labels_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    near, labels = nearest(units(50), 9), np.arange(50) % 3
    whole = near.within(labels)
    monkeypatch.setattr(module, "_ROWS", 7)
    parts = near.within(labels)
    assert (parts.rows == whole.rows).all()
    assert (parts.cosines == whole.cosines).all()


@pytest.mark.parametrize(
    ("step", "most"), [(lambda near: near.edges(0.0), 33), (lambda near: near.within(np.zeros(20_000)), 14)]
)
def test_steps_on_neighbours_take_no_more_memory_than_documented(
    step: Callable[[Neighbours], object], most: int
) -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 20_000, (20_000, 40), np.int32)
    near = Neighbours(rows=rows, cosines=random.random((20_000, 40), np.float32))
    tracemalloc.start()
    try:
        step(near)
        assert tracemalloc.get_traced_memory()[1] < most * rows.size
    finally:
        tracemalloc.stop()
