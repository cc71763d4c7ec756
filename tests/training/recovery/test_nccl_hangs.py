"""Hangs that NCCL's RAS reports: a poller with reports of this test's own, no GPU and no NCCL."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.callbacks import nccl_ras

from rayface.config import TrainConfig
from rayface.training import fit
from rayface.training.ray_trainer import Trainer
from rayface.training.recovery.nccl_hangs import NcclHangs, behind, reports_nccl_hangs
from rayface.training.run_directory import CONTROLLER, RunDirectory

STATUS = {"init_state": 0, "abort_flag": False, "finalize_called": False, "destroy_flag": False}


def report(*counts: int) -> Any:
    """As `ncclras -f json` prints it, of ranks that have done so many all-reduces."""
    ranks = [{"rank": n, "status": STATUS, "collective_counts": {"AllReduce": c}} for n, c in enumerate(counts)]
    printed = {"timestamp": "2026-11-27 10:00:00", "communicators": [{"hash": "0xa", "ranks": ranks}]}
    found = nccl_ras.parse_ras_schema(json.dumps(printed))
    assert found is not None
    return found


@pytest.fixture
def poll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Polls a detector of hangs of 60 s, that is of two polls; returns the lines of faults.log."""
    detector = NcclHangs(RunDirectory(tmp_path), hang_timeout=60)
    monkeypatch.setattr(
        nccl_ras.NCCLRASCallback, "dump_workers_stack_traces", lambda self: (tmp_path / "stacks").touch()
    )
    monkeypatch.setattr(nccl_ras.NCCLRASCallback, "dump_ras_query_history", lambda self, text: None)

    def poll(result: Any) -> list[str]:
        detector._ras_poller = SimpleNamespace(next_result=lambda: result, query=lambda kind: "")
        detector.after_worker_group_poll_status(None)
        log = tmp_path / "faults.log"
        return log.read_text().splitlines() if log.exists() else []

    return poll


def test_rank_that_stays_behind_is_named_once_in_faults_log(poll: Callable[..., list[str]], tmp_path: Path) -> None:
    for counts in ((3, 4, 3), (4, 4, 4), (5, 4, 5), (5, 4, 5)):
        assert poll(report(*counts)) == []
    assert not (tmp_path / "stacks").exists()
    line = (
        "NCCL reports a hang: rank 1 behind in AllReduce (4 of 5), no progress for 30 s; stacks of the workers: "
        f"{tmp_path}/ray/*/hang_detector"
    )
    assert poll(report(5, 4, 5)) == [line]
    assert (tmp_path / "stacks").exists()
    assert poll(report(5, 4, 5)) == [line]
    assert NcclHangs(RunDirectory(tmp_path), hang_timeout=60)._run.writer == CONTROLLER  # a log of its own in a store


def test_ranks_that_advance_or_a_node_without_ncclras_are_no_hang(poll: Callable[..., list[str]]) -> None:
    for step in range(6):
        assert poll(report(step + 1, step)) == []
    missing = nccl_ras.RASQueryError("binary_not_found", fatal=True)
    assert [poll(result) for result in (missing, *[report(9, 8)] * 4)] == [[]] * 5


def test_behind_names_few_of_many_ranks_and_every_operation() -> None:
    counts = {rank: {"AllReduce": 7, "Broadcast": 2} for rank in range(10, 20)}
    ahead = {0: {"AllReduce": 8, "Broadcast": 2, "AllGather": 1}}
    named = "ranks 10, 11, 12, 13, 14, 15, 16, 17, ... behind in"
    assert behind({**ahead, **counts}) == f"{named} AllGather (0 of 1) and {named} AllReduce (7 of 8)"
    eight = {rank: {"AllReduce": 7} for rank in range(8)} | {8: {"AllReduce": 8}}
    assert behind(eight) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 behind in AllReduce (7 of 8)"


def test_nccl_hangs_are_reported_for_several_gpu_workers_with_a_watchdog_only() -> None:
    two = TrainConfig(num_workers=2)
    assert reports_nccl_hangs(two, gpu=True)
    for train, gpu in (
        (two, False),
        (TrainConfig(num_workers=1), True),
        (TrainConfig(num_workers=2, hang_timeout=0), True),
    ):
        assert not reports_nccl_hangs(train, gpu=gpu)


def test_trainer_keeps_the_own_detector_beside_rays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    own = NcclHangs(RunDirectory(tmp_path), hang_timeout=600)
    run_config = fit.RunConfig(name="x", storage_path=str(tmp_path), callbacks=[own])
    callbacks = Trainer(lambda: None, run_config=run_config)._create_default_callbacks()
    assert [each for each in callbacks if isinstance(each, nccl_ras.NCCLRASCallback)] == [own]
