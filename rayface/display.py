"""Terminal output of results: a table or one line of JSON on stdout."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayface.credentials import mask, masked
from rayface.values import visible


def new_console(*, stderr: bool = False, **options: Any) -> Console:
    """Return a console without markup and emoji: paths may contain [brackets] and :names: that rich would interpret.

    On stderr, in a log, lines are not wrapped.
    """
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
    console.soft_wrap = console.soft_wrap or (stderr and not console.is_terminal)
    return console


def safe(text: str) -> str:
    """Return text for a terminal: credentials masked, control characters escaped."""
    return visible(mask(text))


def result_table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values as a table on stdout; long values are wrapped, never truncated."""
    new_console().print(_table(title, rows))


@contextmanager
def live_table() -> Iterator[Callable[[str, Mapping[str, str]], None]]:
    """Yield a function that shows a table as `result_table`, on a terminal in place of the one before."""
    console = new_console()
    if not console.is_terminal:
        yield _changed_lines(new_console(soft_wrap=True))
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda title, rows: live.update(_table(title, rows), refresh=True)


def _changed_lines(console: Console) -> Callable[[str, Mapping[str, str]], None]:
    printed = ""

    def show(title: str, rows: Mapping[str, str]) -> None:
        nonlocal printed
        line = f"{title}  {'  '.join(f'{k} {safe(v)}' for k, v in rows.items())}"
        if line != printed:
            console.print(line)
        printed = line

    return show


def _title(text: str) -> Text:
    return Text(safe(text), style="bold", overflow="fold")


def _table(title: str, rows: Mapping[str, str]) -> Group:
    return Group(_title(title), _names_and_values(rows))


def _names_and_values(rows: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(safe(name), safe(value))
    return table


def columns(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same names as a table with a header on stdout; columns of numbers are right-aligned.

    Cells are wrapped at spaces; where a word would have to break, each row is a block of names and values.
    """
    console = new_console()
    console.print(_title(title))
    texts = [[name, *(safe(row[name]) for row in rows)] for name in rows[0]]
    widths = _widths(texts, console.width - 2 * (len(texts) - 1))
    if widths is None:
        for row in rows:
            console.print(_names_and_values(row))
            console.print()
        return
    table = Table(box=None, pad_edge=False)
    for i, ((name, *cells), width) in enumerate(zip(texts, widths, strict=True)):
        numbers = all(cell == "-" or cell.lstrip("+-")[:1].isdecimal() for cell in cells)
        table.add_column(name, style=None if i else "cyan", justify="right" if numbers else "left", width=width)
    for row in rows:
        table.add_row(*map(safe, row.values()))
    console.print(table)


def _widths(texts: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the widths of columns of texts that together take at most `room`, None if words would have to break."""
    widths = [max(map(cell_len, column)) for column in texts]
    words = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in texts]
    while sum(widths) > room:
        spare = [(width, i) for i, width in enumerate(widths) if width > words[i]]
        if not spare:
            return None
        widths[max(spare)[1]] -= 1
    return widths


def json_line(result: Mapping[str, object]) -> None:
    """Print a result as one line of JSON on stdout."""
    new_console(soft_wrap=True, color_system=None).print(json.dumps(masked(result)))
