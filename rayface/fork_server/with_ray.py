"""Imports Ray, and what workers of a training need of it, into a process that will be forked.

Ray's core seeds its random numbers when it makes its first identifier, and every process forked after that would make
the same ones: tasks of two workers with one identifier end both. Defining an actor class makes one, so the classes that
are defined here get theirs from the operating system.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

import ray.actor
from ray import ActorClassID


class _FromSystem:
    @staticmethod
    def from_random() -> ActorClassID:
        return ActorClassID(os.urandom(ActorClassID.size()))


@contextmanager
def unseeded() -> Iterator[None]:
    """Have actor classes that are defined inside the context leave the seed of Ray's random numbers open."""
    with patch.object(ray.actor, "ActorClassID", _FromSystem):
        yield


with unseeded():
    import rayface.training.controller
    import rayface.training.worker

    with suppress(ImportError):  # each worker imports what it needs
        import rayface.ray_internals.first_use  # noqa: F401
