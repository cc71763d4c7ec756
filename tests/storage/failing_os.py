"""Functions of `os` that fail as a storage does or are recorded, and images to read."""

import os
import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


class Failing:
    """Stands in for a function of `os` and fails the first calls of those that `concerns` selects."""

    def __init__(self, function: Callable[..., Any], number: int, times: float, concerns: str = "") -> None:
        self.function, self.number, self.times, self.concerns = function, number, times, concerns
        self.failed = 0

    def __call__(self, first: Any, *rest: Any) -> Any:
        if self.failed < self.times and (not self.concerns or str(first).endswith(self.concerns)):
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number))
        return self.function(first, *rest)


def fail(
    monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: float = float("inf"), concerns: str = ""
) -> Failing:
    failing = Failing(getattr(os, name), number, times, concerns)
    monkeypatch.setattr(os, name, failing)
    return failing


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that grows by ("sync" or "rename", name); a temporary file has the name that it is renamed to."""
    fsync, replace = os.fsync, os.replace
    calls = []

    def synced(file: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        calls.append(("sync", re.sub(r"^\.(.+)\.[0-9a-f]{8}\.tmp$", r"\1", name)))
        fsync(file)

    def replaced(old: str, new: str) -> None:
        calls.append(("rename", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return calls
