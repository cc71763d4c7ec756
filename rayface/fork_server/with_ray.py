"""Imports Ray, and what workers of a training need of it, into a process that will be forked.

Ray's core seeds its random numbers when it makes its first identifier, and every process forked after that would make
the same ones: tasks of two workers with one identifier end both. Defining an actor class makes one, so the classes that
are defined here get theirs from the operating system.
"""

import os
from unittest.mock import patch

import ray.actor
from ray import ActorClassID


class _FromSystem:
    @staticmethod
    def from_random() -> ActorClassID:
        return ActorClassID(os.urandom(ActorClassID.size()))


with patch.object(ray.actor, "ActorClassID", _FromSystem):
    import rayface.training.worker  # noqa: F401
