"""Messages between the driver, the controller and the workers of a run, as small files in its directory."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayface.files import write_json

Values = Mapping[str, Any]
"""A JSON object whose keys belong to another module."""

_RESTARTS = "restarts.json"
_ROLLBACKS = "rollbacks.json"
_STOP = "stop"
_DRAIN = "leave"
_HANG = "hang"
_BEATS = "beats"


@dataclass(frozen=True)
class _RunStore:
    """Small files that all processes of a run share; the only class to replace for a store other than a disk."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def _mark(self, name: str) -> None:
        (self.path / name).touch()

    def _delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _read_json(self, name: str) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        return None

    def _write_json(self, name: str, value: Values | Sequence[str]) -> None:
        write_json(self.path / name, value)

    def _read_required(self, name: str) -> Values:
        values: Values = json.loads((self.path / name).read_text(encoding="utf-8"))
        return values


class RunMessages(_RunStore):
    """Messages of a run."""

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end.

        Raises:
            FileNotFoundError: the directory does not exist.
        """
        self._mark(_STOP)

    def stop_requested(self) -> bool:
        """Return whether a stop is requested; one rank calls it and broadcasts the answer."""
        return self._exists(_STOP)

    def clear_stop_request(self) -> None:
        """Clear the stop request."""
        self._delete(_STOP)

    def request_drain(self) -> None:
        """Ask the workers to save a checkpoint and end, so that the driver restarts them: a node is preempted."""
        self._mark(_DRAIN)

    def drain_requested(self) -> bool:
        """Return whether a drain is requested."""
        return self._exists(_DRAIN)

    def clear_drain_request(self) -> bool:
        """Return whether a drain was requested, and clear the request."""
        requested = self.drain_requested()
        self._delete(_DRAIN)
        return requested

    def restarts(self) -> list[str]:
        """Return the reasons of the restarts since the driver started, oldest first."""
        return [str(reason) for reason in self._read_json(_RESTARTS) or ()]

    def add_restart(self, reason: str) -> None:
        """Record the reason of a restart, before the workers restart."""
        self._write_json(_RESTARTS, [*self.restarts(), reason])

    def clear_restarts(self) -> None:
        """Clear the restarts and the drain request of an earlier driver."""
        self._delete(_RESTARTS)
        self.clear_drain_request()

    def read_rollbacks(self) -> Values | None:
        """Return the state of the last roll-back; None if there was none."""
        return self._read_json(_ROLLBACKS)

    def write_rollbacks(self, state: Values) -> None:
        """Write the state of a roll-back; the next checkpoint holds it too."""
        self._write_json(_ROLLBACKS, state)

    def delete_rollbacks(self) -> None:
        """Delete the state of the last roll-back, so that only checkpoints count."""
        self._delete(_ROLLBACKS)

    def record_hang(self, report: str) -> None:
        """Store the report of a hang, unless another worker was first."""
        with contextlib.suppress(OSError), (self.path / _HANG).open("x") as file:
            file.write(report)

    def take_hang(self) -> str | None:
        """Return the report of a hang, and delete it."""
        try:
            report = (self.path / _HANG).read_text()
            (self.path / _HANG).unlink()
        except OSError:
            return None
        return report or None

    def open_heartbeat(self, rank: int) -> int:
        """Open the heartbeat file of a worker; return the file descriptor."""
        path = self._heartbeat(rank)
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)

    def read_heartbeat(self, rank: int) -> bytes:
        """Return the last heartbeat of a worker.

        Raises:
            OSError: nothing can be read.
        """
        return self._heartbeat(rank).read_bytes()

    def _heartbeat(self, rank: int) -> Path:
        return self.path / _BEATS / f"rank_{rank:05d}"
