"""One owner of a folder in an object store at a time, also after its process was killed."""

import json
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rayface.storage import DataError, RemotePath, StorageError, lease, leased
from tests.conftest import ObjectStore


class Clock:
    """In the place of `time`: it stands still but for `sleep`, after which `at` may do something, given the seconds."""

    def __init__(self) -> None:
        self.now, self.at = 0.0, lambda now: None
        self.skew = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.8e9 + self.now + self.skew

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    return clock


@pytest.fixture
def folder(object_store: ObjectStore, clock: Clock) -> RemotePath:
    return RemotePath(object_store.uri("run"))


def write_owner(folder: RemotePath, **changed: object) -> None:
    values = {"id": "other", "host": "node7", "pid": 42, "space": "", "ends": lease.time.time() + 60, **changed}
    (folder / lease.LEASE).upload(json.dumps(values).encode())


@pytest.mark.parametrize("skew", [-90, 0, 90])  # of this clock, against that of the owner
def test_lease_that_another_renews_is_refused_in_one_line_whatever_the_clocks_say(
    folder: RemotePath, clock: Clock, skew: float
) -> None:
    write_owner(folder)
    clock.skew = skew
    clock.at = lambda now: write_owner(folder, ends=1.8e9 + now + 60) if now == 15 else None
    with (
        pytest.raises(DataError, match=r"^train.output: process 42 on node7 owns it, .* ends at [\d:]+ UTC .*wait"),
        leased(folder, "train.output"),
    ):
        pass
    assert clock.now == 15


@pytest.mark.parametrize("skew", [-90, 0, 90])
def test_lease_that_does_not_change_for_its_time_is_taken_whatever_the_clocks_say(
    folder: RemotePath, clock: Clock, skew: float, messages: Callable[[], list[str]]
) -> None:
    write_owner(folder)
    clock.skew = skew
    with leased(folder, "train.output"):
        owner = lease.read_owner(folder / lease.LEASE)
        assert owner is not None
        assert owner.id != "other"
    assert clock.now == lease.LEASE_SECONDS + lease.SETTLE_SECONDS
    assert messages() == ["train.output: waiting up to 60 s for the end of the lease of process 42 on node7"]


def test_lease_that_its_owner_releases_meanwhile_is_taken_at_once(folder: RemotePath, clock: Clock) -> None:
    write_owner(folder)
    clock.at = lambda now: (folder / lease.LEASE).unlink() if now == 3 else None
    with leased(folder, "train.output"):
        assert clock.now == 3 + lease.SETTLE_SECONDS


def test_lease_that_a_third_process_takes_between_look_and_write_is_refused(
    folder: RemotePath, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_owner(folder, ends=1.0)
    has_ended = lease.Owner.has_ended

    def overtaken(owner: lease.Owner) -> bool:
        write_owner(folder, id="third", host="node8", ends=clock.time() - 90)  # whose clock is behind
        return has_ended(owner)

    monkeypatch.setattr(lease.Owner, "has_ended", overtaken)
    with pytest.raises(DataError, match="process 42 on node8 owns it"), leased(folder, "train.output"):
        pass


@pytest.mark.parametrize("changed", [{"ends": 1.0}, {"space": lease._space(), "pid": 2**22 + 1}])
def test_lease_that_ended_long_ago_or_whose_process_is_gone_is_taken_over_at_once(
    folder: RemotePath, clock: Clock, changed: dict[str, object]
) -> None:
    write_owner(folder, **changed)
    with leased(folder, "train.output"):
        owner = lease.read_owner(folder / lease.LEASE)
        assert owner is not None
        assert owner.id != "other"
        assert owner.is_valid()
        assert clock.now == lease.SETTLE_SECONDS
        with pytest.raises(DataError, match="owns it"), leased(folder, "train.output"):
            pass
    assert lease.read_owner(folder / lease.LEASE) is None


def test_lease_taken_by_another_is_lost_and_not_deleted(folder: RemotePath) -> None:
    with leased(folder, "train.output") as held:
        held.renew()
        assert not held.lost
        write_owner(folder)
        held.renew()
        assert held.lost
    owner = lease.read_owner(folder / lease.LEASE)
    assert owner is not None
    assert owner.id == "other"


def test_lease_whose_object_is_gone_or_unreadable_is_written_again(folder: RemotePath) -> None:
    with leased(folder, "train.output") as held:
        own = lease.read_owner(folder / lease.LEASE).id
        for spoil in (
            lambda path: path.unlink(),
            lambda path: path.upload(b"{"),
            lambda path: path.upload(b'{"id": 1}'),
        ):
            spoil(folder / lease.LEASE)
            assert lease.read_owner(folder / lease.LEASE) is None
            held.renew()
            assert not held.lost
            assert lease.read_owner(folder / lease.LEASE).id == own


def test_lease_of_an_earlier_process_with_this_ones_id_is_taken_over(folder: RemotePath) -> None:
    """As in a container that was restarted."""
    write_owner(folder, space=lease._space(), pid=os.getpid())
    with leased(folder, "train.output"):
        assert lease.read_owner(folder / lease.LEASE).id != "other"


class Uploads:
    """Uploads that take seconds of a clock which else stands still but for `sleep`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
        self.now, self.count, self.done = 0.0, 0, threading.Semaphore(0)
        upload = RemotePath.upload

        def slow(path: RemotePath, data: bytes) -> None:
            upload(path, data)
            self.now += seconds[self.count] if self.count < len(seconds) else 0.0
            self.count += 1
            self.done.release()

        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1.8e9 + self.now, sleep=self.sleep)
        monkeypatch.setattr(RemotePath, "upload", slow)
        monkeypatch.setattr(lease, "time", clock)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_lease_written_too_long_after_the_look_is_written_again(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(monkeypatch, [0.6 * lease.SETTLE_SECONDS, 0.4 * lease.SETTLE_SECONDS])
    with leased(folder, "train.output"):
        assert uploads.count == 2
        assert uploads.now == 2 * lease.SETTLE_SECONDS


def test_lease_in_a_store_that_is_always_slow_is_not_taken(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_TRIES", 3)
    Uploads(monkeypatch, [0.6 * lease.SETTLE_SECONDS] * 3)
    with pytest.raises(StorageError, match="the store is too slow"), leased(folder, "train.output"):
        pass
    assert lease.read_owner(folder / lease.LEASE) is None


def test_lease_that_is_held_is_renewed_in_the_background(folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)
    uploads = Uploads(monkeypatch, [])
    with leased(folder, "train.output"):
        uploads.now += 1  # more than a lease lasts
        for _ in range(uploads.count + 2):  # the first of the two may have been under way
            assert uploads.done.acquire(timeout=60)
        owner = lease.read_owner(folder / lease.LEASE)
        assert owner.ends == pytest.approx(1.8e9 + uploads.now + 0.2)
        assert owner.is_valid()


def test_lease_whose_next_owner_has_ended_is_lost_all_the_same(folder: RemotePath) -> None:
    with leased(folder, "train.output") as held:
        write_owner(folder, ends=lease.time.time() - 1)
        held.renew()
        assert held.lost


@pytest.mark.parametrize("skew", [0, 90])
def test_lease_of_a_writer_that_was_overtaken_while_it_settled_is_refused(
    folder: RemotePath, clock: Clock, skew: float
) -> None:
    clock.at = lambda now: write_owner(folder, ends=clock.time() + 60 - skew)
    with pytest.raises(DataError, match="process 42 on node7 owns it"), leased(folder, "train.output"):
        pass
