"""Listing sources: units, labels in one space, unique keys; what was listed is not listed again."""

from pathlib import Path

import pyarrow as pa
import pytest

from rayface.data.conversion import listing
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.work_folder import WorkFolder, read_table
from rayface.data.shards.samples import Fault
from rayface.data.sources.faults import FaultLog
from rayface.storage import DataError
from tests.data.conversion.work import listed, work_folder
from tests.data.sources.in_memory import Images, InMemory

NAMED: list[Images] = [
    [("k0", "cy", b"x"), ("k1", "ann", b"x"), ("k2", "cy", b"x")],
    [],
    [("k3", "bob", b"x"), ("k4", "ann", b"x")],
]


def rows(work: WorkFolder, found: listing.Listed) -> list[tuple[str, int]]:
    """Return key and label of all units."""
    table = pa.concat_tables([read_table(work.unit(unit.number)).replace_schema_metadata(None) for unit in found.units])
    return list(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_list_sources_with_names_numbers_them_in_order_of_appearance(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    found = listed(work, InMemory(NAMED))
    assert (found.identities, found.num_labels, found.image_size) == (["cy", "ann", "bob"], 3, (8, 8))
    assert rows(work, found) == [("k0", 0), ("k1", 1), ("k2", 0), ("k3", 2), ("k4", 1)]


def test_list_sources_with_labels_numbers_them_without_holes_and_keeps_them_as_names(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    found = listed(work, InMemory([[("a", 900, b"x"), ("b", 5, b"x")], [("c", 900, b"x")]]))
    assert (found.identities, found.num_labels) == (["5", "900"], 2)
    assert rows(work, found) == [("a", 1), ("b", 0), ("c", 1)]


@pytest.mark.parametrize(("limit", "expected"), [(None, [[0, 1], [2, 3], [4]]), (3, [[0, 1], [2]])])
def test_list_sources_cuts_parts_into_units_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: list[list[int]]
) -> None:
    monkeypatch.setattr(listing, "UNIT_IMAGES", 2)
    work = work_folder(tmp_path)
    found = listed(work, InMemory(NAMED), settings=ConvertSettings(limit=limit))
    keys = [[int(key[1:]) for key in read_table(work.unit(unit.number))["key"].to_pylist()] for unit in found.units]
    assert keys == expected
    assert [(unit.first, len(unit)) for unit in found.units] == [(part[0], len(part)) for part in expected]
    assert found.num_images == sum(map(len, expected))


def test_list_sources_of_two_sources_joins_names_and_prefixes_keys(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    first, second = InMemory(NAMED), InMemory([[("k0", "bob", b"x"), ("k1", "dan", b"x")]])
    first.root, second.root = "/data/one.x", "/data/two"
    found = listed(work, first, second)
    assert found.identities == ["cy", "ann", "bob", "dan"]
    assert rows(work, found)[-3:] == [("one_x/k4", 1), ("two/k0", 2), ("two/k1", 3)]


@pytest.mark.parametrize(("join", "labels"), [("labels", [1, 0, 1, 2]), ("separate", [1, 0, 2, 3])])
def test_list_sources_of_two_without_names_needs_a_join(tmp_path: Path, join: str, labels: list[int]) -> None:
    sources = InMemory([[("a", 9, b"x"), ("b", 5, b"x")]]), InMemory([[("a", 9, b"x"), ("b", 11, b"x")]])
    with pytest.raises(DataError, match=r"has labels without identity names.* set data.join=labels"):
        listed(work_folder(tmp_path / "refused"), *sources)
    work = work_folder(tmp_path / "joined")
    found = listed(work, *sources, settings=ConvertSettings(join=join))  # type: ignore[arg-type]
    assert [label for _, label in rows(work, found)] == labels
    named, settings = work_folder(tmp_path / "named"), ConvertSettings(join="labels")
    with pytest.raises(DataError, match=r"data.join: labels: .* has identity names, not labels"):
        listed(named, sources[0], InMemory(NAMED), settings=settings)


def test_list_sources_kept_separate_keep_the_names_of_those_that_have_some(tmp_path: Path) -> None:
    named, labelled = InMemory([[("a", "ann", b"x"), ("b", "bob", b"x")]]), InMemory([[("a", 7, b"x"), ("b", 5, b"x")]])
    named.root, labelled.root = "/data/one", "/data/two"
    settings, work = ConvertSettings(join="separate"), work_folder(tmp_path / "mixed")
    found = listed(work, named, labelled, settings=settings)
    assert found.identities == ["ann", "bob", "two/5", "two/7"]
    assert rows(work, found) == [("one/a", 0), ("one/b", 1), ("two/a", 3), ("two/b", 2)]
    assert listed(work_folder(tmp_path / "labels"), labelled, labelled, settings=settings).identities is None


def test_list_sources_again_lists_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_folder(tmp_path)
    fault = Fault(shard="p0", member="x", offset=0, reason="corrupt", kind="unreadable")
    source = InMemory(NAMED, faults=FaultLog("memory", [fault]))
    found = listed(work, source)
    monkeypatch.setattr(source, "list_images", None)
    again = listed(work, source)
    assert (again.units, again.identities, again.faults.faults()) == (found.units, found.identities, [fault])


def test_list_sources_without_an_image_names_the_source_and_the_first_fault(tmp_path: Path) -> None:
    fault = Fault(shard="p0", member="x", offset=0, reason="corrupt", kind="unreadable")
    source = InMemory([[]], faults=FaultLog("memory", [fault]))
    with pytest.raises(DataError, match=r"memory: no images to convert: .*; the first fault: p0: x") as caught:
        listed(work_folder(tmp_path), source)
    assert "\n" not in str(caught.value)
