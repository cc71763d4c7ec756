import contextlib
import errno
import json
import math
import os

import pytest

from rayface.storage import RemotePath, Segments
from rayface.tracking import Journal, read_metrics
from rayface.tracking.journal import JournalTail, StoredJournalTail


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_journal_record_is_one_line_on_disk_at_once(tmp_path):
    path = tmp_path / "run" / "tracking" / "rank0.jsonl"
    journal = Journal(path)
    assert journal.last_step == -1
    journal.metrics({"loss": 1.5, "lr": 0.1}, 3)
    journal.params({"head.margin": 0.4, "none": None})
    journal.tags({})
    journal.finish("FINISHED")
    written = lines(path)
    assert [record["kind"] for record in written] == ["metrics", "params", "finish"]
    assert (written[0]["step"], written[0]["values"]) == (3, {"loss": 1.5, "lr": 0.1})
    assert written[1]["values"] == {"head.margin": "0.4", "none": "None"}
    assert journal.last_step == 3
    journal.close()
    journal.close()


def test_journal_of_non_finite_numbers_reads_them_back(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    journal.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, 0)
    assert "NaN" not in (tmp_path / "a.jsonl").read_text()  # which is not JSON
    metrics = read_metrics(tmp_path)
    assert math.isnan(metrics["nan"][0][1])
    assert (metrics["up"][0][1], metrics["down"][0][1]) == (math.inf, -math.inf)


def test_journal_of_replayed_steps_does_not_repeat_them(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    for step in range(10):
        journal.metrics({"loss": 10 - step}, step)
    journal.metrics({"accuracy": 0.5}, 9)  # another name at the same step is no replay
    journal.metrics({"epoch": 1}, 4)
    journal.close()
    journal = Journal(path)
    assert journal.last_step == 9
    for step in range(7, 12):  # resumed from a checkpoint at step 7
        journal.metrics({"loss": -1}, step)
    journal.metrics({"accuracy": 0.6}, 9)
    metrics = read_metrics(tmp_path)
    assert [(step, value) for step, value, _ in metrics["loss"]] == [(s, 10 - s) for s in range(10)] + [
        (10, -1),
        (11, -1),
    ]
    assert [value for _, value, _ in metrics["accuracy"]] == [0.5]


@pytest.mark.parametrize("torn", [b'{"kind": "metrics", "ti', b"\xff\xfe{"])
def test_journal_with_a_torn_last_line_cuts_it_off(tmp_path, torn):
    path = tmp_path / "a.jsonl"
    Journal(path).metrics({"loss": 1.0}, 0)
    with path.open("ab") as file:
        file.write(torn)
    assert [step for step, _, _ in read_metrics(tmp_path)["loss"]] == [0]
    Journal(path).metrics({"loss": 2.0}, 1)
    assert [step for step, _, _ in read_metrics(tmp_path)["loss"]] == [0, 1]
    assert len(lines(path)) == 2


@pytest.mark.parametrize("full", [False, True])
def test_journal_record_that_is_written_in_part_is_completed_or_removed(tmp_path, monkeypatch, full):
    path, write = tmp_path / "a.jsonl", os.write
    journal = Journal(path)
    journal.metrics({"loss": 1.0}, 0)
    calls = []

    def partial(file, data):
        calls.append(len(data))
        if full and len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:20])

    with monkeypatch.context() as patched:
        patched.setattr("os.write", partial)
        with pytest.raises(OSError, match="No space") if full else contextlib.nullcontext():
            journal.metrics({"loss": 2.0}, 1)
    assert len(calls) > 1
    journal.metrics({"loss": 3.0}, 2)
    assert [value for _, value, _ in read_metrics(tmp_path)["loss"]] == ([1.0, 3.0] if full else [1.0, 2.0, 3.0])
    assert len(lines(path)) == 3 - full


def test_read_records_of_corrupt_lines_skips_them(tmp_path):
    path = tmp_path / "a.jsonl"
    Journal(path).metrics({"loss": 1.0}, 0)
    with path.open("ab") as file:
        file.write(b"[1, 2]\n\x00\x00\n")
    Journal(path).metrics({"loss": 2.0}, 1)
    assert [value for _, value, _ in read_metrics(tmp_path)["loss"]] == [1.0, 2.0]


def test_read_metrics_of_several_journals_joins_them_by_step(tmp_path):
    Journal(tmp_path / "b.jsonl").metrics({"loss": 2.0}, 2)
    Journal(tmp_path / "a.jsonl").metrics({"loss": 5.0, "lr": 0.1}, 5)
    metrics = read_metrics(tmp_path)
    assert [(step, value) for step, value, _ in metrics["loss"]] == [(2, 2.0), (5, 5.0)]
    assert metrics["lr"][0][2] > 1e9
    assert read_metrics(tmp_path / "nothing") == {}


def test_journal_artifact_inside_the_run_is_stored_relative(tmp_path):
    journal = Journal(tmp_path / "run" / "tracking" / "driver.jsonl")
    journal.artifact(tmp_path / "run" / "plots" / "loss.png", "plots")
    journal.artifact(tmp_path / "elsewhere.txt")
    written = lines(journal.path)
    assert written[0]["path"] == "../plots/loss.png"
    assert written[1]["path"] == str(tmp_path / "elsewhere.txt")


def test_journal_of_tags_phases_datasets_models_and_the_end_holds_their_fields(tmp_path):
    journal = Journal(tmp_path / "run" / "journal" / "driver.jsonl")
    journal.tags({"best": True})
    journal.phase("validate", "end", rows=6)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.phase("validate", "end", rows=math.nan)
    journal.dataset("faces", digest="d", source="s3://b/faces", context="training", num_images=9)
    journal.model(tmp_path / "run")
    journal.finish("KILLED")
    tags, phase, dataset, model, finish = (
        {k: v for k, v in line.items() if k != "time"} for line in lines(journal.path)
    )
    assert tags == {"kind": "tags", "values": {"best": "True"}}
    assert phase == {"kind": "phase", "name": "validate", "event": "end", "rows": 6}
    values = {"name": "faces", "digest": "d", "source": "s3://b/faces", "context": "training", "num_images": "9"}
    assert dataset == {"kind": "dataset", "values": values}
    assert model == {"kind": "model", "path": ".."}
    assert finish == {"kind": "finish", "status": "KILLED"}


def test_journal_tail_yields_every_record_once(tmp_path):
    tail, seen = JournalTail(tmp_path / "journal"), []
    assert list(tail.read()) == []
    for step, name in enumerate("abab"):
        Journal(tmp_path / "journal" / f"{name}.jsonl").metrics({"loss": 1.0}, step)
        if step != 1:
            seen.append([record["step"] for record in tail.read()])
    assert seen == [[0], [1, 2], [3]]


def test_stored_journal_tail_yields_what_was_delivered_since(tmp_path, object_store):
    folder, journal = RemotePath(object_store.uri("run/journal")), Journal(tmp_path / "a.jsonl")
    delivered, tail = Segments(journal.path, folder / "a.jsonl"), StoredJournalTail(folder)
    (folder / "tracking.json").upload(b"{}")
    for step in range(2):
        journal.metrics({"loss": 1.0}, step)
        assert list(tail.read()) == []
        delivered.push()
        assert [record["step"] for record in tail.read()] == [step]


def test_journal_that_is_a_symbolic_link_is_refused_and_its_target_unchanged(tmp_path):
    (tmp_path / "kept").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="symbolic link"):
        Journal(tmp_path / "a.jsonl")
    assert (tmp_path / "kept").read_text() == "mine"
