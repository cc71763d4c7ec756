"""What verbs share: how results are shown, what is logged on stderr, and options that take a path."""

import json
import logging
from pathlib import Path

import pytest
import typer

from rayface.cli.common import (
    Terminal,
    _be_verbose,
    _local_path,
    _text,
    logged_to_stderr,
    show_result,
    show_results,
    tell,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (12345.6, "1.235e+04"),
        ({"jpeg": 2, "size": 1}, "jpeg 2, size 1"),
        ({}, "none"),
        (["a", 1000], "a, 1,000"),
        ((), "-"),
        ("text", "text"),
    ],
)
def test_text_of_any_value_is_short_and_readable(value: object, text: str) -> None:
    assert _text(value) == text


def test_show_result_as_json_is_one_line_and_as_a_table_has_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"num_rows": 1000, "out": "s3://me:secret@b/x"}
    show_result("embedded", result, True)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"num_rows": 1000, "out": "s3://***@b/x"}
    show_result("embedded", result, False)
    table = capsys.readouterr().out
    assert "num rows" in table
    assert "1,000" in table
    assert "secret" not in table


def test_show_results_as_json_hold_all_of_each_and_as_a_table_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    results, table = [{"a": 1, "b": [2]}, {"a": 3, "b": []}], [{"column": "1"}, {"column": "3"}]
    show_results("title", results, table, True)
    assert json.loads(capsys.readouterr().out) == {"results": results}
    show_results("title", results, table, False)
    assert capsys.readouterr().out.split() == ["title", "column", "1", "3"]


def test_local_path_of_a_uri_is_a_usage_error(tmp_path: Path) -> None:
    assert _local_path(str(tmp_path)) == tmp_path
    with pytest.raises(typer.BadParameter, match="must be a path on a disk that all nodes share, not a URI"):
        _local_path("s3://b/x")


@pytest.mark.parametrize(
    ("verbose", "lines"),
    [
        (False, ["told", "warned of http://***@host"]),
        (True, ["DEBUG rayface.x: detail", "INFO rayface.x: told", "WARNING rayface.x: warned of http://***@host"]),
    ],
)
def test_logged_to_stderr_shows_levels_as_asked_without_credentials(
    capsys: pytest.CaptureFixture[str], verbose: bool, lines: list[str]
) -> None:
    logger = logging.getLogger("rayface")
    level, handlers = logger.level, list(logger.handlers)
    with logged_to_stderr():
        assert _be_verbose(verbose) is verbose
        own = logging.getLogger("rayface.x")
        own.debug("detail")
        own.info("told")
        own.warning("warned of %s", "http://me:secret@host")
        logging.getLogger("other").info("not ours")
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(lines)
    assert all(line.endswith(end) for line, end in zip(shown, lines, strict=True))
    assert (logger.level, logger.handlers) == (level, handlers)


def test_tell_masks_credentials_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tell(ValueError("no answer from http://me:secret@host"))
    assert capsys.readouterr() == ("", "no answer from http://***@host\n")


def test_terminal_shows_a_bar_that_takes_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar("embed shards") as advance:
        advance(1, 2)
        advance(2, None)
    assert capsys.readouterr().out == ""
