"""Display at the terminal: a run's journal, progress and tables."""

import io
import threading

from rich.console import Console

from rayface import display
from rayface.display import _count_lines, _Follower, _show_bar, _show_lines
from rayface.tracking.journal import CHECKPOINT_FAULTS, PREFLIGHT, Journal


def test_training_display_shows_corrupt_checkpoint_and_preflight_once(tmp_path):
    path = tmp_path / "rank0.jsonl"
    for show in (_show_bar, _show_lines):
        follower, shown, done = _Follower(path), io.StringIO(), threading.Event()
        journal = Journal(path)
        journal.tags({CHECKPOINT_FAULTS: "checkpoint step_2 is damaged, step_1 is used instead"})
        journal.tags({PREFLIGHT: "2 ranks on 1 node", "other": "tag"})
        journal.close()
        done.set()
        show(Console(file=shown, width=200), follower, 10, done)
        assert shown.getvalue().count("warning: checkpoint step_2 is damaged, step_1 is used instead") == 1
        assert "\npre-flight: 2 ranks on 1 node\n" in shown.getvalue()
        assert "tag" not in shown.getvalue()


def test_training_lines_without_a_terminal_show_values_with_their_own_step(tmp_path):
    path, shown, done = tmp_path / "rank0.jsonl", io.StringIO(), threading.Event()
    follower, journal = _Follower(path), Journal(path)
    journal.metrics({"eval/accuracy": 0.545}, 0)
    journal.metrics({"train/loss": 2.304, "train/lr": 0.1}, 40)
    journal.metrics({"checkpoint/seconds": 1.0}, 45)
    journal.close()
    done.set()
    _show_lines(Console(file=shown, width=200), follower, 120, done)
    assert shown.getvalue() == "step 40/120  loss 2.304  lr 0.1  accuracy 54.50% at step 0\n"
    assert follower.step == 45


def test_training_lines_before_the_first_values_are_none(tmp_path):
    path, shown, done = tmp_path / "rank0.jsonl", io.StringIO(), threading.Event()
    follower, journal = _Follower(path), Journal(path)
    journal.metrics({"system/cpu": 1.0}, 0)
    journal.close()
    done.set()
    _show_lines(Console(file=shown, width=200), follower, 120, done)
    assert shown.getvalue() == ""


def test_live_table_without_a_terminal_prints_a_line_only_when_it_changes(capsys):
    with display.live_table() as show:
        for step in ("1", "1", "1", "2", "2"):
            show("run", {"step": step})
    assert capsys.readouterr().out == "run  step 1\nrun  step 2\n"


def test_columns_wrap_at_spaces_and_never_within_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    row = {"check": "learning rate", "expected": "about 0.1 for this batch size", "key": "schedule.warmup_epochs"}
    display.columns("a title that is longer than the narrow table below it", [row])
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "a title that is longer than the narrow table below it"
    assert header.split() == ["check", "expected", "key"]
    assert max(map(len, lines)) <= 60
    assert sum("schedule.warmup_epochs" in line for line in lines) == 1


def test_columns_that_just_fit_are_not_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "29")
    display.columns("title", [{"method": "data parallel", "images": "12", "key": "lr 0.1"}])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "method         images  key   ",
        "data parallel      12  lr 0.1",
    ]


def test_columns_of_words_that_do_not_fit_are_a_block_for_each_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    display.columns("title", [{"key": "schedule.warmup_epochs", "figure": "accuracy_mean"}] * 2)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    block = ["key     schedule.warmup_epochs", "figure  accuracy_mean", ""]
    assert lines == ["title", *block, *block]


def test_progress_without_a_terminal_is_a_line_every_15_seconds(monkeypatch):
    """Counted from the line before."""
    clock, shown = iter([0.0, 14.0, 15.0, 29.0, 31.0]), io.StringIO()
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    show = _count_lines(Console(file=shown, width=200), "embedding shards", 90_000)
    for done in range(1, 5):
        show(done, 9)
    assert shown.getvalue() == (
        "embedding shards 2/9  1,333 images/s  0:00:52 left\nembedding shards 4/9  1,290 images/s  0:00:39 left\n"
    )


def test_progress_of_unknown_size_shows_the_count_alone(monkeypatch):
    clock, shown = iter([0.0, 20.0]), io.StringIO()
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    _count_lines(Console(file=shown, width=200), "list")(3, None)
    assert shown.getvalue() == "list 3\n"


def test_path_with_brackets_and_colons_is_shown_as_it_is(capsys):
    path = "faces[/old]/[red]:cat:"
    display.result_table(f"drawn into {path}", {path: path})
    display.columns(path, [{"path": path, path: "1"}])
    with display.progress_bar(path):
        pass
    assert capsys.readouterr().out.count(path) == 6
    with display.Progress(display._text_column("{task.description}"), console=display._console()) as progress:
        progress.add_task(path)
    assert path in capsys.readouterr().out
