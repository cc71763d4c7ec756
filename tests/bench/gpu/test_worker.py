"""The process that runs the cases ends itself when its device no longer answers."""

import os
import time

import pytest
import torch

from rayface.bench.gpu import worker
from rayface.bench.gpu.case import Kit, Outcome
from rayface.bench.gpu.worker import Began, Finished, Request, serve
from tests.bench.gpu.faulty_part import PART


class Wire:
    """The connection of a process that gets one request."""

    def __init__(self, done: set[str]) -> None:
        self.requests = [Request(PART, frozenset(done), time.monotonic() + 600)]
        self.sent: list[object] = []
        self.closed = False

    def recv(self) -> Request:
        if not self.requests:
            raise EOFError
        return self.requests.pop()

    def send(self, message: object) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LEAST_LIMIT", "_LIMIT_FACTOR"):  # the faulty part sets them
        monkeypatch.setattr(worker, name, getattr(worker, name))


def test_serve_after_an_error_that_breaks_the_device_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> None:
        raise SystemExit(code)

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(torch, "zeros", lost)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    wire = Wire(done={"good", "not passed"})
    with pytest.raises(SystemExit):
        serve(wire, Kit(device="cuda", mini=True, contains="raises"))
    assert wire.closed
    assert [type(message) for message in wire.sent] == [Began, Outcome]


def test_serve_after_an_error_on_a_sound_device_goes_on() -> None:
    wire = Wire(done={"good"})
    serve(wire, Kit(device="cpu", mini=True, contains="raises"))
    assert [type(message) for message in wire.sent] == [Began, Outcome, Outcome, Finished]
    assert wire.sent[2].note.startswith("RuntimeError: no more cases [faulty_part.py")
    assert not wire.closed
