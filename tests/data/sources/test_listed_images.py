"""All images of a source as one list: labels by name or number, pieces by part, identities left out."""

import numpy as np
import pytest

from rayface.data.shards.samples import Fault
from rayface.data.sources import listed_images
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.listed_images import list_source
from rayface.storage import DataError
from tests.data.sources.in_memory import Images, InMemory

NAMED: list[Images] = [
    [("k0", "cy", b"x"), ("k1", "ann", b"x"), ("k2", "cy", b"x")],
    [],
    [("k3", "bob", b"x"), ("k4", "ann", b"x")],
]


def test_list_source_with_names_numbers_them_in_order_of_appearance() -> None:
    listed = list_source(InMemory(NAMED), FaultLog("memory"))
    assert listed.identities == ["cy", "ann", "bob"]
    assert listed.labels.tolist() == [0, 1, 0, 2, 1]
    assert (listed.labels.dtype, len(listed), listed.image_size) == (np.int32, 5, (8, 8))


def test_list_source_with_labels_numbers_them_in_their_order_without_holes() -> None:
    listed = list_source(InMemory([[("a", 900, b"x"), ("b", 5, b"x")], [("c", 900, b"x")]]), FaultLog("memory"))
    assert listed.identities == [5, 900]
    assert listed.labels.tolist() == [1, 0, 1]


def test_list_source_without_an_image_names_the_source_and_the_first_fault() -> None:
    fault = Fault(shard="p0", member="x", offset=0, reason="corrupt", kind="image")
    source = InMemory([[]], faults=FaultLog("memory", [fault]))
    log = FaultLog("memory")
    with pytest.raises(DataError, match=r"memory: no images in it: .*; the first fault: p0: x") as caught:
        list_source(source, log)
    assert "\n" not in str(caught.value)
    assert log.first() == fault


def test_pieces_of_numbers_in_any_order_are_of_one_part_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed_images, "_PIECE", 2)
    listed = list_source(InMemory(NAMED), FaultLog("memory"))
    numbers = np.array([4, 0, 2, 3, 1])
    pieces = list(listed.pieces(numbers))
    found = {
        int(position): key
        for piece in pieces
        for position, key in zip(piece.positions, piece.images["key"].to_pylist(), strict=True)
    }
    assert [found[position] for position in range(5)] == [f"k{number}" for number in numbers]
    assert [piece.part for piece in pieces] == [0, 0, 2]
    assert max(len(piece.images) for piece in pieces) == 2


def test_without_identities_drops_their_images_and_numbers_the_others_anew() -> None:
    listed = list_source(InMemory(NAMED), FaultLog("memory")).without_identities([0])
    assert (listed.identities, listed.labels.tolist()) == (["ann", "bob"], [0, 1, 0])
    keys = listed.keys()
    assert [column.to_pylist() for column in keys] == [["k1"], [], ["k3", "k4"]]
    assert [piece.images["key"].to_pylist() for piece in listed.pieces(np.arange(3))] == [["k1"], ["k3", "k4"]]
