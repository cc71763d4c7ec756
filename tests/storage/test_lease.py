"""One owner of a folder in an object store at a time, also after its process was killed."""

import json
import time

import pytest

from rayface.storage import DataError, RemotePath, lease, leased
from tests.conftest import ObjectStore


@pytest.fixture
def folder(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_TRIES", 1000)  # on a machine under load a write takes longer than half of that
    return RemotePath(object_store.uri("run"))


def write_owner(folder: RemotePath, **changed: object) -> None:
    values = {"id": "other", "host": "node7", "pid": 42, "space": "", "ends": time.time() + 60, **changed}
    (folder / lease.LEASE).upload(json.dumps(values).encode())


def test_lease_that_another_renews_is_refused_in_one_line_with_owner_and_end(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_owner(folder)
    monkeypatch.setattr(time, "sleep", lambda seconds: write_owner(folder, ends=time.time() + 90))
    with (
        pytest.raises(DataError, match=r"^train.output: process 42 on node7 owns it, .* ends at [\d:]+ UTC .*wait"),
        leased(folder, "train.output"),
    ):
        pass


def test_lease_of_a_dead_process_elsewhere_is_taken_once_it_ends(folder: RemotePath) -> None:
    write_owner(folder, ends=time.time() + 0.5)
    with leased(folder, "train.output"):
        owner = lease.read_owner(folder / lease.LEASE)
        assert owner is not None
        assert owner.id != "other"


@pytest.mark.parametrize("changed", [{"ends": 1.0}, {"space": lease._space(), "pid": 2**22 + 1}])
def test_lease_that_ended_or_whose_process_is_gone_is_taken_over(
    folder: RemotePath, changed: dict[str, object]
) -> None:
    write_owner(folder, **changed)
    with leased(folder, "train.output"):
        owner = lease.read_owner(folder / lease.LEASE)
        assert owner is not None
        assert owner.id != "other"
        assert owner.is_valid()
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


def test_lease_whose_next_owner_has_ended_is_lost_all_the_same(folder: RemotePath) -> None:
    with leased(folder, "train.output") as held:
        write_owner(folder, ends=time.time() - 1)
        held.renew()
        assert held.lost


def test_lease_of_a_writer_that_was_overtaken_while_it_settled_is_refused(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (write_owner(folder), sleep(0)))
    with pytest.raises(DataError, match="process 42 on node7 owns it"), leased(folder, "train.output"):
        pass
