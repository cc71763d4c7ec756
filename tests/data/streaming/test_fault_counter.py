"""Every corrupt image is counted once; too many of them stop the run."""

import pytest

from rayface.data.shards.samples import Fault
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.storage import DataError


def fault(member: str, lost: int = 1) -> Fault:
    return Fault(shard="a.tar", member=member, offset=0, reason="corrupt", num_lost=lost)


def test_fault_counter_with_repeated_faults_counts_each_once() -> None:
    counter = FaultCounter(10, 0.5, known=[fault("known", 2)])
    assert counter.add([fault("a"), fault("known", 2)]) == [fault("a")]
    assert counter.add([fault("a")]) == []
    assert counter.num_lost == 3


def test_fault_counter_above_the_limit_stops_in_one_line() -> None:
    counter = FaultCounter(10, 0.1)
    counter.add([fault("a")])
    with pytest.raises(DataError, match=r"^2 of 10 images are corrupt, more than data.max_corrupt_fraction=0.1") as e:
        counter.add([fault("b")])
    assert "\n" not in str(e.value)
    assert "a.tar: b" in str(e.value)


def test_fault_counter_state_loaded_after_a_resume_is_counted_once() -> None:
    before = FaultCounter(10, 0.5)
    before.add([fault("a"), fault("b", 3)])
    after = FaultCounter(10, 0.5)
    after.load_state(before.state())
    assert after.add([fault("a")]) == []
    assert after.num_lost == 4
