"""CPU time and memory of processes, from /proc; Linux only."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A process with its name and CPU time."""

    pid: int
    name: str
    cpu_seconds: float


def process_tree(root: int) -> list[Process]:
    """Return a process and all below it."""
    parents: dict[int, int] = {}
    found: list[Process] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid = int(path.parent.name)
            head, _, rest = path.read_text().rpartition(")")
            fields = rest.split()
            parents[pid] = int(fields[1])
            ticks = int(fields[11]) + int(fields[12])
            found.append(Process(pid, head.partition("(")[2], ticks / _TICKS))

    def is_below(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [process for process in found if is_below(process.pid)]


def cpu_seconds(root: int) -> dict[int, float]:
    """Return the CPU time of a process and of all below it, by pid."""
    return {process.pid: process.cpu_seconds for process in process_tree(root)}


def ray_workers(root: int) -> list[int]:
    """Return the pids of Ray's workers below a process."""
    return [process.pid for process in process_tree(root) if process.name.startswith("ray::")]


def peak_bytes(pid: int, *, reset: bool = False) -> int:
    """Return the peak resident memory of a process, 0 if unknown; `reset` restarts the peak first."""
    with suppress(OSError):
        if reset:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status_bytes(pid, "VmHWM")


def private_bytes(pid: int) -> int:
    """Return the private anonymous memory of a process; 0 if unknown."""
    return _status_bytes(pid, "RssAnon")


def _status_bytes(pid: int, field: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return 0
