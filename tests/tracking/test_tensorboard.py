"""The event file of TensorBoard: every record of the journals once, whatever a crash left of it."""

import errno
import io
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from rayface.tracking import Journal
from rayface.tracking.tensorboard import TensorBoard
from rayface.tracking.weights_and_biases import WeightsAndBiases

TIMEOUT = 60


def write(spool: Path) -> TensorBoard:
    reader = TensorBoard(spool)
    reader.start()
    assert reader.close(TIMEOUT), reader.last_error
    return reader


def scalars(file: Path) -> Counter[tuple[str, int, float]]:
    """How often a scalar is in the file."""
    found: Counter[tuple[str, int, float]] = Counter()
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                number = value.tensor.float_val[0]
                found[value.tag, event.step, -1.0 if math.isnan(number) else round(number, 4)] += 1
    return found


def wanted(steps: int) -> dict[tuple[str, int, float], int]:
    return {("train/loss", step, float(step)): 1 for step in range(steps)} | {("eval/nan", 0, -1.0): 1}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool of a driver and a worker that has logged ten steps."""
    Journal(tmp_path / "journal" / "driver.jsonl").params({"optim.lr": 0.1})
    log(tmp_path / "journal", 10)
    return tmp_path / "journal"


def log(spool: Path, steps: int) -> None:
    journal = Journal(spool / "rank0.jsonl")
    journal.metrics({"eval/nan": math.nan}, 0)
    for step in range(steps):
        journal.metrics({"train/loss": float(step)}, step)
    journal.close()


def test_tensorboard_of_a_run_has_scalars_with_the_times_of_the_journal_and_params_as_text(spool: Path) -> None:
    reader = write(spool)
    assert reader.file.parent == spool.parent / "tensorboard"
    assert scalars(reader.file) == wanted(10)
    events = list(EventFileLoader(str(reader.file)).Load())
    first = json.loads((spool / "rank0.jsonl").read_text().splitlines()[1])
    times = [event.wall_time for event in events for value in event.summary.value if value.tag == "train/loss"]
    assert times[0] == first["time"]
    texts = {
        value.tag: value.tensor.string_val[0]
        for event in events
        for value in event.summary.value
        if value.tensor.string_val
    }
    assert texts["params/optim.lr/text_summary"] == b"0.1"


@pytest.mark.parametrize("lost", [0, 1, 40, 200])
def test_tensorboard_resumed_after_a_crash_has_every_record_once(spool: Path, lost: int) -> None:
    """The crash comes after a batch is in the file, in part or as a whole, and before the position is stored."""
    reader = write(spool)
    before, state = reader.file.read_bytes(), spool / "delivered-tensorboard.json"
    position = state.read_text()
    log(spool, 25)
    reader = write(spool)
    whole = reader.file.read_bytes()
    state.write_text(position)
    reader.file.write_bytes(whole[: len(whole) - lost])
    log(spool, 30)
    write(spool)
    assert scalars(reader.file) == wanted(30)
    assert reader.file.read_bytes().startswith(whole)  # a TensorBoard that reads along is not confused
    assert whole.startswith(before)


def test_tensorboard_whose_file_was_deleted_or_journal_replaced_is_written_again(spool: Path) -> None:
    reader = write(spool)
    reader.file.unlink()
    write(spool)
    assert scalars(reader.file) == wanted(10)
    (spool / "rank0.jsonl").unlink()
    log(spool, 4)
    write(spool)
    assert scalars(reader.file) == wanted(4)


def test_tensorboard_after_a_failed_write_has_every_record_once(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, failures = os.fsync, [OSError(errno.EIO, "Input/output error")]

    def fsync(file: int) -> None:
        if failures and os.readlink(f"/proc/self/fd/{file}").endswith(".rayface"):
            raise failures.pop()
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    assert scalars(write(spool).file) == wanted(10)
    assert not failures


def test_tensorboard_on_a_disk_that_takes_a_part_of_the_last_record_has_it_whole(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File(io.FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data[:-5] if len(data) > 5 else data)

    monkeypatch.setattr(os, "fdopen", lambda file, mode, **_: File(file, mode))
    assert scalars(write(spool).file) == wanted(10)


def test_hint_of_a_folder_with_a_space_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spool = tmp_path / "a run" / "journal"
    spool.mkdir(parents=True)
    assert TensorBoard(spool).hint == "tensorboard --logdir 'a run/tensorboard'"
    wandb = WeightsAndBiases(spool, project="p", name="n").hint
    assert wandb.startswith("wandb sync 'a run/wandb'/offline-run-*-")


def test_tensorboard_whose_file_is_a_symbolic_link_leaves_its_target_unchanged(spool: Path, tmp_path: Path) -> None:
    (kept := tmp_path / "kept").write_text("mine")
    reader = TensorBoard(spool)
    reader.file.parent.mkdir()
    reader.file.symlink_to(kept)
    reader.start()
    assert not reader.close(0.5)
    assert kept.read_text() == "mine"
