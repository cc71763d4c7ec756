"""Results at the terminal: tables."""

from rayface import display


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


def test_path_with_brackets_and_colons_is_shown_as_it_is(capsys):
    path = "faces[/old]/[red]:cat:"
    display.result_table(f"drawn into {path}", {path: path})
    display.columns(path, [{"path": path, path: "1"}])
    assert capsys.readouterr().out.count(path) == 6
