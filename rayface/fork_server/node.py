"""`ray start` for a node whose workers are forked from one process that has imported PyTorch, not started one by one.

    python -m rayface.fork_server.node --head --port=6379 ...

takes the options of `ray start`. That process ends with the node. A job that brings its own rayface has workers of it.
Drivers on the node are forked, too, where RAYFACE_FORK_SERVER is set as this prints it, and in jobs that Ray starts.
"""

import os
import sys

from ray.scripts.scripts import cli

from rayface.fork_server import ADDRESS
from rayface.fork_server.launch import LIBRARIES, TRACKING, WORKER_SCRIPTS, ForkServerProcess, UnsupportedError
from rayface.ray_internals.nodes import forking_nodes
from rayface.ray_internals.tokens import protect_token


def main() -> None:
    """Run `ray start`; without support for a fork server, as on macOS, a plain one."""
    arguments = ["start", *sys.argv[1:]]
    protect_token(create=False)  # `ray start` makes none
    if "--enable-resource-isolation" in arguments:  # Ray limits the processes that it has started itself
        cli(arguments, prog_name="ray")
    try:
        server = ForkServerProcess((*LIBRARIES, *TRACKING))
    except UnsupportedError:
        cli(arguments, prog_name="ray")
    os.environ[ADDRESS] = server.address
    hint = f"For runs that are started on this node with --address to begin sooner: export {ADDRESS}={server.address}"
    print(hint, flush=True)
    with forking_nodes(WORKER_SCRIPTS, server.follow):
        cli(arguments, prog_name="ray")


if __name__ == "__main__":
    main()
