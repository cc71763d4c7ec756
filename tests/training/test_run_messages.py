"""Messages of a run: requests, restarts, roll-backs, hangs, heartbeats."""

import os

import pytest

from rayface.training.run_directory import RunDirectory


def test_stop_and_drain_requests_are_independent(tmp_path):
    run = RunDirectory(tmp_path)
    assert not (run.stop_requested())
    assert not (run.drain_requested())
    assert not (run.clear_drain_request())
    run.request_drain()
    assert run.drain_requested()
    assert not run.stop_requested()
    run.request_stop()
    assert run.clear_drain_request()
    assert not run.clear_drain_request()
    assert run.stop_requested()
    run.clear_stop_request()
    assert not run.stop_requested()
    with pytest.raises(FileNotFoundError):
        RunDirectory(tmp_path / "gone").request_stop()


def test_restarts_of_an_earlier_driver_are_cleared(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.restarts() == []
    run.add_restart("worker 1 died")
    run.add_restart("worker 0 died")
    run.request_drain()
    assert run.restarts() == ["worker 1 died", "worker 0 died"]
    run.clear_restarts()
    assert run.restarts() == []
    assert not run.drain_requested()


def test_hang_reported_twice_keeps_the_first_and_is_taken_once(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.take_hang() is None
    run.record_hang("worker 1 hangs")
    run.record_hang("worker 0 hangs")
    assert run.take_hang() == "worker 1 hangs"
    assert run.take_hang() is None


def test_rollbacks_written_are_read_until_they_are_deleted(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_rollbacks() is None
    run.write_rollbacks({"skipped": [3], "rate_factor": 0.5})
    assert run.read_rollbacks() == {"skipped": [3], "rate_factor": 0.5}
    run.delete_rollbacks()
    run.delete_rollbacks()
    assert run.read_rollbacks() is None


def test_heartbeat_of_each_rank_is_read_by_others_and_missing_ones_raise(tmp_path):
    run = RunDirectory(tmp_path)
    for rank in (0, 1):
        file = run.open_heartbeat(rank)
        os.write(file, bytes([rank]) * 3)
        os.close(file)
    assert [run.read_heartbeat(rank) for rank in (0, 1)] == [b"\0\0\0", b"\1\1\1"]
    with pytest.raises(OSError, match="rank_00002"):
        run.read_heartbeat(2)


def test_hang_reported_into_a_missing_directory_is_dropped(tmp_path):
    """The worker that reports it ends in any case."""
    run = RunDirectory(tmp_path / "gone")
    run.record_hang("worker 1 hangs")
    assert run.take_hang() is None
