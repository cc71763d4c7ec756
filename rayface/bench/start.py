"""Benchmark of a run's start and end: seconds by phase and CPU seconds by process, from the command to its exit."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayface.data.synth import synthesize
from rayface.progress import phase
from rayface.tracking.journal import Record, read_records
from rayface.training.run_directory import RunDirectory

_POLL_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")
START, END = "start", "end"
# In their order; each lasts from the one before it to the event that it is named by.
_PHASES: tuple[tuple[str, str], ...] = (
    ("import, read config and data", START),
    ("start or join Ray, import PyTorch, check the model", START),
    ("start the controller", START),
    ("start the workers' processes", START),
    ("import PyTorch, join the process group", START),
    ("build the model, read the first batch", START),
    ("train", ""),
    ("stop the workers", END),
    ("write the report", END),
    ("deliver to MLflow, stop Ray", END),
)


_FIRST_STEP = sum(part == START for _, part in _PHASES) - 1


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """A phase of the run; median of the rounds."""

    phase: str
    part: str
    """Of what it is a part: "start" (up to the first step), "end" (after the last), or neither."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StartTimes:
    """What was measured of whole commands."""

    workers: int
    rounds: int
    first_step_seconds: float
    """From the command to the end of step 1; median of the rounds, as all below."""
    end_seconds: float
    """From the end of the last step to the exit."""
    phases: list[PhaseTime]
    cpu_seconds: dict[str, float]
    """Up to the first step, by kind of process; those of a Ray that ran before are not in it."""

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Round:
    events: list[float]
    """When each phase ended, seconds since the command."""
    cpu: dict[str, float]


def bench_start(
    overrides: Sequence[str] = (), *, workers: int = 2, rounds: int = 3, address: str | None = None
) -> StartTimes:
    """Run `rayface train` on drawn images, several times, and say when it did what.

    Processes are told apart by the titles that Ray gives them in /proc, every 0.05 s, so this needs Linux.

    Args:
        overrides: config keys of the run, a tenth of an epoch; data.train is drawn where it is not among them, and the
            backbone is `mini` then.
        workers: train.num_workers.
        rounds: number of runs.
        address: of a Ray that runs; None: each run starts its own.

    Raises:
        RuntimeError: a run failed; its last line.
    """
    if not Path("/proc/self/stat").exists():
        raise ValueError("rayface bench start: reads /proc: must run on Linux")
    with tempfile.TemporaryDirectory(prefix="rayface-start-") as folder:
        if not any(override.startswith("data.train=") for override in overrides):
            synthesize(Path(folder) / "images", identities=200, images_per_identity=20)
            overrides = [f"data.train={folder}/images", "backbone.name=mini", *overrides]
        found: list[_Round] = []
        with phase("measure rounds", parts=rounds) as current:
            for number in range(rounds):
                found.append(_run(Path(folder) / f"run{number}", overrides, workers, address))
                current.advance()
    return _summary(found, workers)


def _run(output: Path, overrides: Sequence[str], workers: int, address: str | None) -> _Round:
    command = [sys.executable, "-m", "rayface.cli", "train", "train.log_every=1", "train.epochs=0.1", *overrides]
    command += [f"train.num_workers={workers}", f"train.output={output}"]
    command += ["--address", address] if address else []
    run = RunDirectory(output)
    processes = None if not address else _Processes(None)
    begin = time.time()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            watched = _watch(process, processes or _Processes(process.pid), run, begin)
        finally:
            process.terminate()  # no effect on one that has ended
            process.wait()
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"rayface train: {(said.read().strip().splitlines() or ['no message'])[-1]}")
    return watched


def _watch(process: subprocess.Popen[Any], titles: "_Processes", run: RunDirectory, begin: float) -> _Round:
    """Poll until the command ends; return when each phase of _PHASES ended."""
    signs: tuple[Callable[[], bool], ...] = (
        lambda: titles.seen("gcs_server") or titles.seen("ray::TrainController"),
        lambda: titles.seen("ray::TrainController"),
        lambda: titles.seen("ray::RayTrainWorker"),
        lambda: titles.seen("_join"),
        lambda: titles.seen("run_train_fn"),
    )
    events: list[float] = []
    cpu: dict[str, float] = {}
    while process.poll() is None:
        titles.read()
        while len(events) < len(signs) and signs[len(events)]():
            events.append(time.time() - begin)
        if not cpu and run.worker_journal_file.exists() and _steps(run):
            cpu = titles.cpu_seconds()
        time.sleep(_POLL_SECONDS)
    exited = time.time() - begin
    if process.returncode:
        return _Round(events=events, cpu=cpu)
    steps, ended = _steps(run), _ends(run)
    at = [*steps[:1], *steps[-1:], ended["train"], ended["write report"]]
    # A phase too short to be seen ended with the next one.
    events += [events[-1]] * (len(signs) - len(events))
    return _Round(events=[*events, *(when - begin for when in at), exited], cpu=cpu)


def _steps(run: RunDirectory) -> list[float]:
    """Return when each step was logged, seconds since the epoch."""
    return [record["time"] for record in _records(run.worker_journal_file) if "train/loss" in record.get("values", ())]


def _ends(run: RunDirectory) -> dict[str, float]:
    """Return when each phase of the driver ended, seconds since the epoch."""
    records = _records(run.journals / "driver.jsonl")
    return {each["name"]: each["time"] for each in records if each["kind"] == "phase" and each["event"] == "end"}


def _records(journal: Path) -> list[Record]:
    return [record for record, _ in read_records(journal, 0) if record]


class _Processes:
    """Processes by the titles that they have had since this object was made.

    Args:
        root: count only this process and those that descend from it; None: all of the machine.
    """

    def __init__(self, root: int | None) -> None:
        self._root = root
        self._titles: dict[int, str] = {}
        self._names: dict[int, bytes] = {}
        self._cpu: dict[int, float] = {}
        self._seen: set[tuple[int, str]] = set()
        self.read()
        self._before = set(self._titles) - {root}
        self._seen = {(pid, title) for pid, title in self._seen if pid == root}

    def read(self) -> None:
        """Look at all processes once."""
        parents: dict[int, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                pid = int(entry)
                try:
                    with open(f"/proc/{entry}/stat", "rb") as file:
                        head, _, rest = file.read().rpartition(b")")
                    if self._names.get(pid) != head or b"(ray::" in head:  # it has the first 15 bytes of a title
                        with open(f"/proc/{entry}/cmdline", "rb") as file:
                            title = file.read().replace(b"\0", b" ").decode(errors="replace")
                        if title.strip():
                            self._names[pid] = head
                            if self._titles.get(pid) != title:
                                self._titles[pid] = title
                                self._seen.add((pid, title))
                except OSError:  # it has ended
                    continue
                fields = rest.split()
                parents[pid], self._cpu[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
        self._seen = {(pid, title) for pid, title in self._seen if pid not in parents or self._counts(pid, parents)}

    def _counts(self, pid: int, parents: dict[int, int]) -> bool:
        while self._root is not None and pid > 1 and pid != self._root:
            pid = parents.get(pid, 0)
        return self._root in (None, pid)

    def seen(self, text: str) -> bool:
        """Return whether a process has had a title with `text` in it."""
        return any(text in title for _, title in self._seen)

    def cpu_seconds(self) -> dict[str, float]:
        """Return CPU seconds so far by kind of process, without processes that were there before."""
        total: dict[str, float] = {}
        for pid in {pid for pid, _ in self._seen} - self._before:
            kind = "driver" if pid == self._root else _kind(self._titles[pid])
            total[kind] = total.get(kind, 0.0) + self._cpu[pid]
        return dict(sorted(total.items(), key=lambda pair: -pair[1]))


def _kind(title: str) -> str:
    """Return a name for all processes of one kind."""
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split("(")[0].strip()
    names = (part.rpartition("/")[2] for part in title.split() if not part.startswith("-"))
    return next((name for name in names if not name.startswith("python")), "python")


def _summary(found: Sequence[_Round], workers: int) -> StartTimes:
    ends = [statistics.median(each.events[place] for each in found) for place in range(len(_PHASES))]
    lengths = [
        statistics.median(each.events[place] - (each.events[place - 1] if place else 0.0) for each in found)
        for place in range(len(_PHASES))
    ]
    kinds = {kind for each in found for kind in each.cpu}
    cpu = {kind: statistics.median(each.cpu.get(kind, 0.0) for each in found) for kind in kinds}
    return StartTimes(
        workers=workers,
        rounds=len(found),
        first_step_seconds=ends[_FIRST_STEP],
        end_seconds=statistics.median(each.events[-1] - each.events[_FIRST_STEP + 1] for each in found),
        phases=[
            PhaseTime(phase=name, part=part, seconds=seconds)
            for (name, part), seconds in zip(_PHASES, lengths, strict=True)
        ],
        cpu_seconds=dict(sorted(cpu.items(), key=lambda pair: -pair[1])),
    )
