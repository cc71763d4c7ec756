"""Progress at the terminal: bars, and a run's journal."""

import contextlib
import io
import re
import threading
from itertools import pairwise

import pytest
from rich.console import Console

from rayface import display, progress_bars
from rayface.progress_bars import _count_lines, _Follower, _show_bar, _show_lines, progress_bar
from rayface.tracking.journal import CHECKPOINT_FAULTS, PREFLIGHT, RECOVERY, Journal


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal of 80 columns is sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=80, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(progress_bars, "new_console", lambda **_: console)
    return sent


def frames(sent: io.StringIO) -> list[str]:
    """Return the texts that a live display drew one over the other, without those of an empty line."""
    text = re.sub(r"\x1b\[[?0-9;]*m", "", sent.getvalue())
    return [frame.rstrip() for frame in re.split(r"[\r\n]+|\x1b\[[?0-9;]*[A-Za-z]", text) if frame.strip()]


def test_training_display_shows_corrupt_checkpoint_and_preflight_once(tmp_path):
    path = tmp_path / "rank0.jsonl"
    for show in (_show_bar, _show_lines):
        follower, shown, done = _Follower(path), io.StringIO(), threading.Event()
        journal = Journal(path)
        journal.tags({CHECKPOINT_FAULTS: "checkpoint step_2 is corrupt, step_1 is used instead"})
        journal.tags({PREFLIGHT: "2 ranks on 1 node", "other": "tag"})
        journal.close()
        done.set()
        show(Console(file=shown, width=200), follower, 10, done)
        assert shown.getvalue().count("warning: checkpoint step_2 is corrupt, step_1 is used instead") == 1
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


def test_training_display_of_a_resumed_run_goes_on_after_a_line_that_a_crash_cut(tmp_path):
    path, done, shown = tmp_path / "rank0.jsonl", threading.Event(), io.StringIO()
    path.write_text('{"kind": "metrics", "time": 1.0, "step": 7, "values": {"train/l')
    follower = _Follower(path)
    with contextlib.closing(Journal(path)) as journal:  # cuts the line off
        journal.metrics({"train/lr": 0.1}, 40)
        journal.metrics({"train/loss": 2.25}, 41)
    done.set()
    _show_lines(Console(file=shown, width=200), follower, 120, done)
    assert shown.getvalue() == "step 41/120  loss 2.250  lr 0.1 at step 40\n"


def test_lines_of_a_log_are_not_wrapped(tmp_path, capsys):
    follower, journal = _Follower(tmp_path / "driver.jsonl"), Journal(tmp_path / "driver.jsonl")
    journal.tags({RECOVERY: f"rolled back because {'a long reason ' * 20}: the end"})
    journal.close()
    follower.read()
    follower.show_notes(display.new_console(stderr=True))
    with display.live_table() as show:
        show("trial 7", {"reason": "a long reason " * 20})
    out, err = capsys.readouterr()
    assert (out.count("\n"), err.count("\n")) == (1, 1)


def test_training_lines_before_the_first_values_are_none(tmp_path):
    path, shown, done = tmp_path / "rank0.jsonl", io.StringIO(), threading.Event()
    follower, journal = _Follower(path), Journal(path)
    journal.metrics({"system/cpu": 1.0}, 0)
    journal.close()
    done.set()
    _show_lines(Console(file=shown, width=200), follower, 120, done)
    assert shown.getvalue() == ""


def test_progress_without_a_terminal_is_a_line_every_15_seconds(monkeypatch):
    """Counted from the line before."""
    clock, shown = iter([0.0, 14.0, 15.0, 29.0, 31.0]), io.StringIO()
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    show = _count_lines(Console(file=shown, width=200), "embedding shards", 90_000)
    for done in range(1, 5):
        show(done, 9)
    assert shown.getvalue() == (
        "embedding shards 2/9  1,333 images/s  0:00:52 left\nembedding shards 4/9  1,290 images/s  0:00:39 left\n"
    )


def test_progress_of_unknown_size_shows_the_count_alone(monkeypatch):
    clock, shown = iter([0.0, 20.0]), io.StringIO()
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: next(clock))
    _count_lines(Console(file=shown, width=200), "list")(3, None)
    assert shown.getvalue() == "list 3\n"


def test_bar_inside_another_is_shown_alone_until_it_ends(terminal):
    with progress_bar("outer"):
        with progress_bar("inner"):
            assert [bars.live.is_started for bars in progress_bars._live_bars] == [False, True]
        assert [bars.live.is_started for bars in progress_bars._live_bars] == [True]
    assert progress_bars._live_bars == []
    names = [frame.split()[0] for frame in frames(terminal)]
    switches = sum(a != b for a, b in pairwise(names))
    assert (names[0], names[-1], switches) == ("outer", "outer", 2)


def test_bar_of_a_path_with_brackets_and_colons_shows_it_as_it_is(terminal):
    with progress_bar("faces[/old]/[red]:cat:", parts=2):
        pass
    assert "faces[/old]/[red]:cat:" in frames(terminal)[-1]


def test_training_bar_of_80_columns_shortens_the_bar_and_keeps_the_times(terminal, tmp_path):
    path, done = tmp_path / "rank0.jsonl", threading.Event()
    follower, journal = _Follower(path), Journal(path)
    values = {"train/loss": 12.345, "train/lr": 0.02125, "train/images_per_second": 12345.0, "eval/accuracy": 0.5123}
    journal.metrics(values, 12_000)
    journal.close()
    done.set()
    _show_bar(progress_bars.new_console(), follower, 120_000, done)
    last = frames(terminal)[-1]
    assert "loss 12.345" in last
    assert "accuracy 51.23%" in last
    assert re.search(r"0:00:0\d -:--:--$", last)
    assert len(last) <= 80
