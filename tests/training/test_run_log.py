"""The log of a run: rank 0's journal and faults.log."""

import pytest
import torch

from rayface.progress import phase
from rayface.tracking import read_metrics
from rayface.tracking.journal import RECOVERY, read_records
from rayface.training.checkpointing.writer import WriteTiming
from rayface.training.distributed import World
from rayface.training.run_directory import RunDirectory
from rayface.training.run_log import RunLog


def log_of(run, rank):
    return RunLog(RunDirectory(run), World(rank=rank, size=2, local_size=2, device=torch.device("cpu")))


def tell(log):
    log.metrics({"train/loss": 0.5}, 3)
    log.recovery("worker 1 died: workers were restarted")
    log.checkpoint_written(WriteTiming(step=2, wait_seconds=0.1, copy_seconds=0.2, write_seconds=0.3))
    log.corrupt_samples([])
    log.close()


def test_run_log_of_rank_0_writes_journal_and_faults_log(tmp_path):
    log = log_of(tmp_path, 0)
    assert log.last_step == -1
    tell(log)
    assert log.last_step == 3
    assert (tmp_path / "faults.log").read_text() == "worker 1 died: workers were restarted\n"
    (journal,) = tmp_path.rglob("rank0.jsonl")
    metrics = read_metrics(journal.parent)
    assert [point[:2] for point in metrics["train/loss"]] == [(3, 0.5)]
    assert {name: metrics[f"checkpoint/{name}"][0][:2] for name in ("wait_seconds", "write_seconds")} == {
        "wait_seconds": (2, pytest.approx(0.1)),
        "write_seconds": (2, pytest.approx(0.3)),
    }
    tags = [record["values"] for record, _ in read_records(journal, 0) if record["kind"] == "tags"]
    assert tags == [{RECOVERY: "worker 1 died: workers were restarted"}]


def test_run_log_of_rank_0_records_the_phases_of_its_process(tmp_path):
    for rank in (0, 1):
        log = log_of(tmp_path / str(rank), rank)
        with log.phases(), phase("validate", rows=8):
            pass
        log.close()
    (journal,) = tmp_path.rglob("rank*.jsonl")
    records = [record for record, _ in read_records(journal, 0)]
    assert [(record["name"], record["event"], record["rows"]) for record in records] == [
        ("validate", "start", 8),
        ("validate", "end", 8),
    ]


def test_run_log_of_another_rank_writes_nothing(tmp_path):
    tell(log_of(tmp_path, 1))
    assert list(tmp_path.iterdir()) == []
