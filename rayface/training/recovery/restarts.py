"""How often and why the workers of a run were started again: written by the controller, told by rank 0."""

import json
from pathlib import Path

from rayface.files import write_json

RESTARTS = "restarts.json"
_LEAVE = "leave"


def clear_restarts(run: Path) -> None:
    """Begin to count: a driver counts its own."""
    (run / RESTARTS).unlink(missing_ok=True)
    clear_drain_request(run)


def add_restart(run: Path, reason: str) -> None:
    """Note, before workers are started again, why."""
    write_json(run / RESTARTS, [*restarts(run), reason])


def restarts(run: Path) -> list[str]:
    """The reasons so far, oldest first."""
    path = run / RESTARTS
    return list(json.loads(path.read_text())) if path.exists() else []


def request_drain(run: Path) -> None:
    """Say that the workers end before they are done, because a node goes: the driver has to start them again."""
    (run / _LEAVE).touch()


def drain_requested(run: Path) -> bool:
    """Whether that was said."""
    return (run / _LEAVE).exists()


def clear_drain_request(run: Path) -> bool:
    """Whether that was said; once."""
    said = drain_requested(run)
    (run / _LEAVE).unlink(missing_ok=True)
    return said
