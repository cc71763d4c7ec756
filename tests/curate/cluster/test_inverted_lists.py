"""Neighbours from inverted lists: all of them with all lists, most of them with few, and the same after a crash."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.cluster import inverted_lists as module
from rayface.curate.cluster.inverted_lists import find_listed_neighbours
from rayface.curate.cluster.nearest_kernel import insert_nearest
from rayface.curate.cluster.neighbours import Neighbours, nearest
from rayface.curate.cluster.unit_vectors import UnitVectors
from rayface.curate.work_files import WorkPath

People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., UnitVectors]:
    """A function of vectors -> the same as parts of 700 on disk; tasks run in the test's own process."""

    def map_unordered(work: Callable[[Any], Any], parts: Sequence[Any], *phase: Any, **of: Any) -> Iterator[Any]:
        yield from map(work, reversed(parts))

    monkeypatch.setattr(module, "map_unordered", map_unordered)

    def write(x: NDArray[np.float32], name: str = "vectors") -> UnitVectors:
        (tmp_path / name).mkdir()
        starts = (*range(0, len(x), 700), len(x))
        found = UnitVectors(folder=WorkPath(root=tmp_path / name), starts=starts)
        for part in range(found.num_parts):
            np.save(found.path(part).local(), x[starts[part] : starts[part + 1]])
        return found

    return write


def test_neighbours_from_all_lists_are_the_exact_ones(in_parts: Callable[..., UnitVectors], people: People) -> None:
    x, _ = people(100, 20, size=16)
    found, recall = find_listed_neighbours(in_parts(x), 10, 10**6)
    exact = nearest(x, 10)
    assert recall == 1
    assert (found.rows == exact.rows).mean() > 0.999  # equal cosines to the last bit may change places
    assert found.cosines == pytest.approx(exact.cosines, abs=1e-6)


def test_neighbours_from_few_lists_are_most_of_the_exact_ones_at_a_fraction_of_the_products(
    in_parts: Callable[..., UnitVectors], people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = people(200, 15, spread=0.5, size=32)
    compared = []
    inside = module._compare

    def counted(queries: Any, some: Any, members: Any, *rest: Any) -> None:
        compared.append(len(some) * len(members))
        inside(queries, some, members, *rest)

    monkeypatch.setattr(module, "_compare", counted)
    found, recall = find_listed_neighbours(in_parts(x), 10, 16)
    exact = nearest(x, 10)
    true = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)])
    assert true > 0.9
    assert recall == pytest.approx(true, abs=0.05)
    assert sum(compared) < 0.2 * len(x) ** 2


def test_neighbours_of_an_interrupted_search_are_the_same(
    in_parts: Callable[..., UnitVectors], people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = people(100, 15, size=16)
    whole, _ = find_listed_neighbours(in_parts(x), 5, 8)
    vectors = in_parts(x, "again")
    for step in ("_probe", "_gather", "write_neighbours"):
        with monkeypatch.context() as patched:
            patched.setattr(module, step, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                find_listed_neighbours(vectors, 5, 8)
    again, _ = find_listed_neighbours(vectors, 5, 8)
    assert (whole.rows == again.rows).all()
    assert (whole.cosines == again.cosines).all()


def test_neighbours_of_equal_vectors_leave_out_only_the_image_itself(in_parts: Callable[..., UnitVectors]) -> None:
    x = np.repeat(np.eye(3, 8, dtype=np.float32), [400, 500, 1], axis=0)
    found, _ = find_listed_neighbours(in_parts(x), 4, 4)
    assert not (found.rows == np.arange(901)[:, None]).any()
    assert (found.cosines[:900] > 0.999).all()
    assert find_listed_neighbours(in_parts(x[:3], "few"), 4, 4)[0].rows.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_insert_nearest_equals_a_sort_by_falling_cosine_and_row() -> None:
    random = np.random.default_rng(0)
    images, k, first = 6, 4, 10
    found = Neighbours(rows=np.full((images, k), -1), cosines=np.full((images, k), np.float32(-2), np.float32))
    seen: list[list[tuple[float, int]]] = [[] for _ in range(images)]
    for start in (24, 0, 48, 12, 36):  # a list of rows; cosines of few values, so that many are equal
        slots = np.arange(start, start + 12)
        queries = np.flatnonzero(random.random(images) < 0.7)
        values = -np.sort(-random.integers(-3, 4, (len(queries), 5)).astype(np.float32) / 4, axis=1)
        candidates = np.stack([random.permutation(12)[:5] for _ in queries])
        insert_nearest(found.rows, found.cosines, queries, slots, candidates, values, first)
        for query, numbers, cosines in zip(queries, candidates, values, strict=True):
            pairs = zip(-cosines, slots[numbers], strict=True)
            seen[query] += [(value, row) for value, row in pairs if row != query + first]
    for query in range(images):
        best = sorted(seen[query])[:k]
        assert found.rows[query, : len(best)].tolist() == [row for _, row in best]
        assert found.cosines[query, : len(best)].tolist() == [-value for value, _ in best]
