"""The store of mirrored states, in this process."""

import os

import numpy as np
import pytest

from rayface.training.checkpointing.mirror_store import MirrorStore, Part, mapped, newest_whole


def part(step: int, workers: int = 2) -> Part:
    return Part(step=step, workers=workers, progress="{}", places={})


def deliver(store: MirrorStore, rank: int, slot: int, step: int, content: bytes = b"1234", workers: int = 2) -> None:
    path = store.begin(rank, slot, len(content))
    mapped(path, len(content))[:] = content
    store.commit(rank, slot, part(step, workers))


def test_delivered_part_is_read_by_mapping_and_by_bytes():
    store = MirrorStore("a")
    deliver(store, 1, 0, 5, b"abcdef")
    (found,) = store.delivered()
    assert (found.rank, found.slot, found.part.step, found.node, found.size) == (1, 0, 5, "a", 6)
    assert mapped(found.path, found.size)[:] == b"abcdef"
    assert store.read(1, 0, 2, 3) == b"cde"


def test_bytes_of_another_node_are_written_in_pieces():
    store = MirrorStore("a")
    store.begin(0, 1, 6)
    store.write(0, 1, 0, np.frombuffer(b"abc", np.uint8))
    store.write(0, 1, 3, np.frombuffer(b"def", np.uint8))
    store.commit(0, 1, part(1))
    assert store.read(0, 1, 0, 6) == b"abcdef"


def test_begun_slot_is_not_delivered_until_it_is_whole():
    store = MirrorStore("a")
    deliver(store, 0, 0, 5)
    deliver(store, 0, 1, 6)
    store.begin(0, 0, 4)
    assert [one.part.step for one in store.delivered()] == [6]


def test_begin_with_the_same_size_keeps_the_memory_and_another_size_replaces_it():
    store = MirrorStore("a")
    first = os.stat(store.begin(0, 0, 4)).st_ino
    assert os.stat(store.begin(0, 0, 4)).st_ino == first
    assert os.stat(store.begin(0, 0, 8)).st_ino != first


def test_discard_before_gives_the_memory_of_earlier_parts_back():
    store = MirrorStore("a")
    deliver(store, 0, 0, 5)
    deliver(store, 1, 0, 6)
    old = store.delivered()[0].path
    store.discard_before(6)
    assert [(one.rank, one.part.step) for one in store.delivered()] == [(1, 6)]
    with pytest.raises(OSError, match="No such file"):
        mapped(old, 4)


def test_memory_is_open_to_its_user_only():
    path = MirrorStore("a").begin(0, 0, 4)
    assert os.lstat(os.path.dirname(path)).st_mode & 0o077 in (0, 0o055)  # the folder of descriptors: never writable
    assert os.stat(path).st_uid == os.getuid()


def test_newest_whole_is_the_newest_step_that_every_rank_has_delivered():
    a, b = MirrorStore("a"), MirrorStore("b")
    assert newest_whole([]) is None
    deliver(a, 0, 0, 5)
    deliver(a, 0, 1, 6)
    assert newest_whole(a.delivered()) is None
    deliver(b, 1, 0, 5)
    deliver(b, 0, 0, 5)  # the neighbour's copy
    found = newest_whole([*a.delivered(), *b.delivered()])
    assert found is not None
    assert {rank: sorted(copy.node for copy in copies) for rank, copies in found.items()} == {0: ["a", "b"], 1: ["b"]}
    assert found[0][0].part.step == 5


def test_newest_whole_of_two_whole_states_is_the_later_one():
    store = MirrorStore("a")
    deliver(store, 0, 0, 6, workers=1)
    deliver(store, 0, 1, 5, workers=1)
    found = newest_whole(store.delivered())
    assert found is not None
    assert [copy.part.step for copy in found[0]] == [6]


def test_write_that_the_system_takes_in_pieces_is_whole(monkeypatch):
    store, write = MirrorStore("a"), os.pwrite
    store.begin(0, 0, 12)
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:3], offset))
    store.write(0, 0, 2, np.frombuffer(b"abcdefgh", np.uint8))
    assert store.read(0, 0, 0, 12) == b"\0\0abcdefgh\0\0"


def test_newest_whole_does_not_mix_states_of_different_numbers_of_workers():
    store = MirrorStore("a")
    deliver(store, 0, 0, 5, workers=1)
    deliver(store, 1, 0, 7, workers=2)
    deliver(store, 0, 1, 7, workers=3)
    found = newest_whole(store.delivered())
    assert found is not None
    assert [found[0][0].part.step, list(found)] == [5, [0]]
