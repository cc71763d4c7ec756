"""Offline runs of Weights & Biases, written by the real package: every record of the journals once."""

import json
import re
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from rayface.tracking import Journal, deliver
from rayface.tracking.weights_and_biases import WeightsAndBiases

ROOT = Path(__file__).parents[2]
TIMEOUT = 60
_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.tracking.test_weights_and_biases import write
write(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""
_BLOCK = 32768


def write(spool: Path) -> WeightsAndBiases:
    reader = WeightsAndBiases(spool, project="faces", name="demo/run")
    reader.start()
    assert reader.close(TIMEOUT), reader.last_error
    return reader


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of an offline run: blocks of LevelDB's log format, after a header of 7 bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := _BLOCK - at % _BLOCK) < 7:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def losses(root: Path) -> Counter[tuple[int, float]]:
    """How often a step and loss is in all runs of a folder."""
    found: Counter[tuple[int, float]] = Counter()
    for file in (root / "wandb").glob("offline-run-*/*.wandb"):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                found[row["step"], row["train/loss"]] += 1
    return found


def log(spool: Path, steps: int, status: str | None = None) -> None:
    journal = Journal(spool / "rank0.jsonl")
    for step in range(steps):
        journal.metrics({"train/loss": float(step)}, step)
    if status:
        journal.finish(status)
    journal.close()


@pytest.mark.long
def test_wandb_resumed_after_a_crash_has_every_record_once_in_one_run(tmp_path: Path) -> None:
    spool = tmp_path / "journal"
    Journal(spool / "driver.jsonl").params({"optim.lr": 0.1})
    log(spool, 10)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(spool)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (first,) = (tmp_path / "wandb").glob("offline-run-*")
    log(spool, 25, "FINISHED")
    write(spool)
    assert losses(tmp_path) == {(step, float(step)): 1 for step in range(25)}
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found = {record.WhichOneof("record_type"): record for record in records(file)}
    assert found["run"].run.display_name == "demo/run"
    assert file.stem == f"run-{first.name.rpartition('-')[2]}"  # the id that it had
    assert found["exit"].exit.exit_code == 0
    written = file.stat().st_mtime_ns
    assert deliver(spool, TIMEOUT)  # nothing new: the finished run stays
    assert file.stat().st_mtime_ns == written


def test_wandb_with_a_stored_id_that_is_a_path_deletes_nothing(tmp_path: Path) -> None:
    spool, kept = tmp_path / "run" / "journal", tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "run" / "wandb" / "offline-run-1-x").mkdir(parents=True)
    reader = WeightsAndBiases(spool, project="faces", name="demo/run")
    (spool / "delivered-wandb.json").write_text(json.dumps({"target": "faces", "run_id": "x/../../../kept"}))
    assert re.fullmatch(r"[0-9a-f]{8}", reader._prepare().run_id or "")
    assert kept.is_dir()
