"""The watchdog finds the worker that is behind, and ends all of them."""

import struct
import time
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayface.training.recovery import watchdog as watchdog_module
from rayface.training.recovery.watchdog import PHASES, Watchdog, furthest_behind, has_stepped
from rayface.training.run_directory import RunDirectory
from tests.ranks import run_ranks


@pytest.mark.parametrize(
    ("places", "behind"),
    [
        ([(7, "loss"), (6, "update"), (7, "loss")], 1),
        ([(7, "loss"), (7, "loss"), (7, "forward")], 2),
        ([(7, "data"), (7, "checkpoint"), (7, "data")], 1),
        ([(7, "loss"), (7, "loss"), None], 1),  # the last to come; no word of rank 2
        ([(7, "forward", 1), (7, "backward", 0), (7, "loss", 1)], 1),  # a piece of the batch behind
        ([(7, "evaluate", 0, 3), (7, "evaluate", 0, 2), (7, "evaluate", 0, 3)], 1),  # has embedded a batch less
        ([(7, "score"), (7, "forward"), (7, "forward")], 0),
        ([(7, "score"), (7, "checkpoint"), (7, "checkpoint")], 0),  # where they wait at once
    ],
)
def test_furthest_behind_of_several_workers_is_the_slowest(tmp_path, places, behind):
    (tmp_path / "beats").mkdir()
    for rank, place in enumerate(places):
        if place is not None:
            write_beat(tmp_path, rank, *place)
    found = furthest_behind(RunDirectory(tmp_path), 3)
    assert found is not None
    assert (found.rank, found.step, found.phase) == (behind, *places[behind][:2])


def write_beat(run, rank, step, phase, piece=0, signs=0):
    beat = struct.pack("<qqqqd", step, piece, PHASES.index(phase), signs, 1000.0 + rank)
    (run / "beats" / f"rank_{rank:05d}").write_bytes(beat)


def test_watchdog_while_the_slowest_worker_makes_progress_waits(tmp_path):
    (tmp_path / "beats").mkdir()
    write_beat(tmp_path, 0, 7, "forward")
    watchdog = Watchdog(RunDirectory(tmp_path), 0, 2, 10.0, lambda: None)
    watchdog.at("forward", 7)
    now = time.monotonic()
    for signs in range(1, 9):
        write_beat(tmp_path, 1, 7, "score", signs=signs)
        assert watchdog.standstill(now + 8 * signs) == 0
    assert watchdog.standstill(now + 73) == 0
    assert watchdog.standstill(now + 75) > 10


def test_watchdog_of_the_slowest_worker_ignores_the_progress_of_others(tmp_path):
    (tmp_path / "beats").mkdir()
    write_beat(tmp_path, 0, 7, "forward")
    watchdog = Watchdog(RunDirectory(tmp_path), 0, 2, 10.0, lambda: None)
    watchdog.at("forward", 7)
    now = time.monotonic()
    for signs in range(1, 4):
        write_beat(tmp_path, 1, 7, "loss", signs=signs)
        assert (watchdog.standstill(now + 4 * signs) > 10) == (signs == 3)


def test_watchdog_of_a_slow_worker_with_progress_does_not_fire(tmp_path):
    written = [1]
    watchdog = Watchdog(RunDirectory(tmp_path), 0, 1, 10.0, lambda: written[0])
    assert watchdog.standstill(time.monotonic() + 11) == 0  # the start has more time
    watchdog.at("forward", 1)
    assert watchdog.standstill(time.monotonic() + 9) == 0
    assert watchdog.standstill(time.monotonic() + 11) > 10
    watchdog.alive()
    assert watchdog.standstill(time.monotonic() + 9) == 0
    watchdog.at("checkpoint", 2)
    for later in (11, 22, 33):
        written[0] += 1  # a file grows
        assert watchdog.standstill(time.monotonic() + later) == 0
    assert watchdog.standstill(time.monotonic() + 44) > 10


def test_watchdog_of_rank_0_that_starts_deletes_the_report_of_earlier_workers(tmp_path):
    run = RunDirectory(tmp_path)
    run.record_hang("old")
    with Watchdog(run, 1, 2, 10.0, lambda: None):
        assert (tmp_path / "hang").exists()
    with Watchdog(run, 0, 2, 10.0, lambda: None):
        assert run.take_hang() is None


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    fake = types.SimpleNamespace(monotonic=lambda: now[0], time=lambda: 1000.0 + now[0])
    monkeypatch.setattr(watchdog_module, "time", fake)
    return now


def test_watchdog_writes_every_sign_of_progress_and_counts_from_it(tmp_path, clock):
    run, written = RunDirectory(tmp_path), [1]
    with Watchdog(run, 0, 1, 100.0, lambda: written[0]) as watchdog:
        watchdog._stop.set()  # its thread would look, too
        clock[0] = 50.0
        watchdog.at("forward", 3, 1)
        assert furthest_behind(run, 1) == (3, 1, "forward", 0, 1050.0, 0)
        assert [watchdog.standstill(now) for now in (149, 151)] == [0, 101]
        clock[0] = 90.0
        watchdog.alive()
        watchdog.alive()
        assert furthest_behind(run, 1) == (3, 1, "forward", 2, 1090.0, 0)
        assert [watchdog.standstill(now) for now in (189, 191)] == [0, 101]
        watchdog.at("checkpoint", 3)
        assert furthest_behind(run, 1) == (3, 0, "checkpoint", 0, 1090.0, 0)
        assert watchdog.standstill(90) == 0  # the other workers see that a file grows, too
        assert furthest_behind(run, 1) == (3, 0, "checkpoint", 1, 1090.0, 0)


def test_watchdog_gives_the_start_thirty_minutes_more(tmp_path, clock):
    watchdog = Watchdog(RunDirectory(tmp_path), 0, 1, 10.0, lambda: None)
    assert [watchdog.standstill(now) for now in (1809, 1811)] == [0, 1811]


def test_watchdog_without_a_timeout_is_off(tmp_path):
    with Watchdog(RunDirectory(tmp_path), 0, 1, 0.0, lambda: None) as watchdog:
        watchdog.at("forward", 3)
    assert list(tmp_path.iterdir()) == []


def test_waiting_worker_looks_for_progress_of_the_slowest_after_a_quarter_of_the_timeout(tmp_path, clock):
    (tmp_path / "beats").mkdir()
    write_beat(tmp_path, 0, 7, "forward")
    write_beat(tmp_path, 1, 7, "score")
    watchdog = Watchdog(RunDirectory(tmp_path), 0, 2, 100.0, lambda: None)
    watchdog.at("forward", 7)
    assert [watchdog.standstill(now) for now in (24, 26, 125, 127)] == [0, 0, 0, 101]


@pytest.mark.parametrize(("piece", "place"), [(0, "step 7, loss"), (1, "step 7, loss of micro-batch 2")])
def test_report_of_a_hang_names_the_slowest_worker_and_its_place(tmp_path, piece, place):
    run = RunDirectory(tmp_path)
    watchdog = Watchdog(run, 1, 2, 10.0, lambda: None)
    watchdog.at("loss", 7, piece)
    watchdog._report(11.2)  # no heartbeat can be read
    assert run.take_hang() == f"worker 1 hangs: no progress for 11 s in {place} (train.hang_timeout)"
    (tmp_path / "beats").mkdir()
    write_beat(tmp_path, 0, 6, "data")
    (tmp_path / "beats" / "rank_00001").write_bytes(b"cut off")
    watchdog._report(11.2)
    assert run.take_hang() == "worker 0 hangs: no progress for 11 s in step 6, data (train.hang_timeout)"


def train_and_hang(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with Watchdog(RunDirectory(Path(folder)), rank, 2, 5.0, lambda: None) as watchdog:
        for step in range(5):
            watchdog.at("forward", step)
            if (rank, step) == (1, 3):
                time.sleep(600)
            watchdog.at("loss", step)
            dist.all_reduce(torch.zeros(1))


@pytest.mark.long
def test_watchdogs_of_a_hung_worker_end_all_and_report_it(tmp_path):
    with pytest.raises(mp.ProcessExitedException) as caught:
        run_ranks(train_and_hang, (str(tmp_path),), 2)
    assert caught.value.exit_code == 70
    told = RunDirectory(tmp_path).take_hang()
    assert told is not None
    assert told.startswith("worker 1 hangs: no progress for ")
    assert "in step 3, forward (train.hang_timeout)" in told
    assert RunDirectory(tmp_path).take_hang() is None


def test_has_stepped_is_true_from_the_first_step_of_the_session_on_whatever_the_clocks_say(tmp_path):
    run = RunDirectory(tmp_path)
    assert not has_stepped(run)
    (tmp_path / "beats").mkdir()
    for phase, stepped in (("start", False), ("evaluate", False), ("score", False), ("forward", True), ("data", True)):
        write_beat(tmp_path, 0, 7, phase)  # in 1970
        assert has_stepped(run) is stepped
    write_beat(tmp_path, 1, 0, "start")
    assert has_stepped(run)
    run.clear_heartbeats()  # by the driver of the next session
    assert not has_stepped(run)
