"""What the kit found: JSON after every case, a table after every part."""

import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rayface.bench.gpu.case import BAD, Outcome, Part, Value
from rayface.bench.gpu.machine import Machine, clocks
from rayface.storage import atomic_stream

RESULTS, TABLES = "results.json", "tables.txt"
_WIDTH = 160  # where the output is no terminal
_LONG = 24  # characters of a text that gets no column


@dataclass
class PartRecord:
    """A part as it stands in the JSON."""

    title: str
    seconds_given: float
    seconds: float = 0.0
    clocks: str = ""
    """Of the GPU, at the end of the part."""
    cases: list[Outcome] = field(default_factory=list)


@dataclass
class Record:
    """The whole JSON."""

    started: str
    arguments: dict[str, Value]
    machine: Machine
    parts: dict[str, PartRecord] = field(default_factory=dict)


class Report:
    """Prints outcomes and keeps them in a folder.

    Args:
        folder: RESULTS and TABLES are written there.
        arguments: of the command, for the JSON.
    """

    def __init__(self, folder: Path, arguments: dict[str, Value], machine: Machine, console: Console | None = None):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.record = Record(started=started, arguments=arguments, machine=machine)
        self._console = console or Console(markup=False, highlight=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = _WIDTH
        self._tables = Console(file=io.StringIO(), markup=False, highlight=False, emoji=False, width=_WIDTH)
        self._key, self._begun = "", 0.0
        self._console.print(" · ".join(f"{value}" for value in asdict(machine).values() if value))
        self._write()

    def begin(self, part: Part, seconds: float) -> None:
        """Begin a part that has so many seconds."""
        self._key, self._begun = part.key, time.monotonic()
        self.record.parts[part.key] = PartRecord(part.title, round(seconds, 1))
        self._console.print(f"\npart {part.key}, {part.title}: {seconds:.0f} s")

    def add(self, outcome: Outcome) -> None:
        """Report a case."""
        self._part.cases.append(outcome)
        self._part.seconds = time.monotonic() - self._begun
        self._write()
        note = f"  {outcome.note}" if outcome.status in BAD else ""
        self._console.print(f"  {outcome.status:>7}  {outcome.seconds:5.1f} s  {outcome.case}{note}", soft_wrap=True)

    def end(self) -> None:
        """Print the table of the part."""
        self._part.seconds, self._part.clocks = time.monotonic() - self._begun, clocks()
        for table in _tables(self._key, self._part):
            self._console.print(table)
            self._tables.print(table)
        self._write()
        with atomic_stream(str(self._folder / TABLES)) as stream:
            stream.write(self._tables.file.getvalue().encode())  # type: ignore[attr-defined]

    def summary(self) -> None:
        """Print how the cases ended, and the bad ones again."""
        for key, part in self.record.parts.items():
            counts = Counter(outcome.status for outcome in part.cases)
            ended = ", ".join(f"{count} {status}" for status, count in counts.items())
            self._console.print(f"part {key}, {part.title}: {ended or 'no case'} in {part.seconds:.0f} s")
        for outcome in self._bad():
            self._console.print(f"  {outcome.status}: {outcome.case}: {outcome.note}", soft_wrap=True)
        self._console.print(f"written: {self._folder / RESULTS}, {self._folder / TABLES}")

    @property
    def all_passed(self) -> bool:
        """Whether no case failed; one that was cut or that the GPU's memory was too small for did not."""
        return not self._bad()

    @property
    def _part(self) -> PartRecord:
        return self.record.parts[self._key]

    def _bad(self) -> list[Outcome]:
        return [outcome for part in self.record.parts.values() for outcome in part.cases if outcome.status in BAD]

    def _write(self) -> None:
        with atomic_stream(str(self._folder / RESULTS)) as stream:
            stream.write(json.dumps(asdict(self.record), indent=1, default=str).encode())


def _tables(key: str, part: PartRecord) -> Iterator[Table]:
    """Yield a table for each kind of figures, and one of the cases without any."""
    kinds: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in part.cases:
        kinds.setdefault(tuple(outcome.figures), []).append(outcome)
    for kind, found in sorted(kinds.items(), key=lambda each: not each[0]):
        long = {name for outcome in found for name in _long(outcome)}
        names = [name for name in kind if name not in long]
        title = f"{key}: {part.title}" + (f" ({part.clocks})" if part.clocks else "")
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("case", style="cyan", no_wrap=True)
        table.add_column("status", no_wrap=True)
        for name in names:
            table.add_column(name.replace("_", " "), justify="right", overflow="fold")
        table.add_column("note", overflow="fold")
        for outcome in found:
            texts = [_text(outcome.figures[name]) for name in names]
            table.add_row(outcome.case, outcome.status, *texts, _note(outcome))
        yield table


def _note(outcome: Outcome) -> str:
    """Return the note, and the figures that are too long for a column."""
    long = [f"{name.replace('_', ' ')}: {outcome.figures[name]}" for name in _long(outcome)]
    return "; ".join([outcome.note] * bool(outcome.note) + long)


def _long(outcome: Outcome) -> list[str]:
    return [name for name, value in outcome.figures.items() if isinstance(value, str) and len(value) > _LONG]


def _text(value: Value) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 1e-2:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
