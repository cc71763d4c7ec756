"""Nodes of Ray for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayface.fork_server.launch import fork_server
from rayface.ray_internals.nodes import started_nodes


@contextmanager
def light_nodes() -> Iterator[None]:
    """Have nodes that are started inside the context fork their workers, and run no process that tests do not need."""
    with (
        fork_server() as scripts,
        started_nodes(worker_scripts=scripts, log_monitor=False, autoscaler=False, api_server=False),
    ):
        yield
