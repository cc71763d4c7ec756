"""The log of what a conversion leaves out."""

import pytest

from rayface.data.shards.samples import Fault
from rayface.data.sources import faults
from rayface.data.sources.faults import FaultLog


def fault(member: str, kind: str = "unreadable", num_lost: int = 1) -> Fault:
    return Fault(shard="src", member=member, reason="bad", num_lost=num_lost, kind=kind)


def test_fault_log_beyond_its_limit_counts_faults_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_NAMED", 2)
    log = FaultLog("src", [fault("a"), fault("b"), fault("c", num_lost=5), fault("x", "hidden"), fault("y", "hidden")])
    other = FaultLog("src", [fault("d"), fault("e"), fault("f", num_lost=0)])
    log.update(other)
    told = [(each.member, each.reason, each.kind, each.num_lost) for each in log.faults()]
    assert told == [
        ("a", "bad", "unreadable", 1),
        ("b", "bad", "unreadable", 1),
        ("x", "bad", "hidden", 1),
        (None, "4 more of kind 'unreadable'", "unreadable", 7),
        (None, "1 more of kind 'hidden'", "hidden", 1),
    ]


def test_fault_log_without_faults_has_no_first() -> None:
    assert FaultLog("src").first() is None
    assert FaultLog("src", [fault("a"), fault("b")]).first() == fault("a")


def test_fault_log_first_is_that_of_a_lost_image() -> None:
    assert FaultLog("src", [fault("x", "hidden"), fault("c", num_lost=0), fault("b")]).first() == fault("b")
    assert FaultLog("src", [fault("x", "hidden"), fault("y", "alias")]).first() == fault("x", "hidden")
