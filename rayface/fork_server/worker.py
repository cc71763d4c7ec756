"""The script that Ray runs in place of its own default_worker.py: has it run in a process of the fork server.

Ray knows a worker by the process that registers, the forked one. This one, the client, waits for it and ends as it
does.
"""

import os
import socket
import sys
from importlib.util import find_spec

# Where rayface is not installed, but beside the driver's script.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(__file__))))

from rayface.fork_server import ADDRESS, WORKER_MODULES
from rayface.fork_server.protocol import CONNECT_SECONDS, end_as, send_request, set_oom_score, wait_exit_status


def main() -> None:
    """Run Ray's default_worker.py."""
    ray = find_spec("ray")  # not imported: that takes longer than all else here
    assert ray is not None
    assert ray.origin is not None
    run(os.path.join(os.path.dirname(ray.origin), "_private", "workers", "default_worker.py"), sys.argv[1:])


def run(program: str, arguments: list[str]) -> None:
    """Have a process forked that runs a script, wait for it and end as it does; where there is none, become it."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(os.environ[ADDRESS])
            send_request(connection, program, arguments, modules=WORKER_MODULES)
        except (OSError, KeyError):
            os.execv(sys.executable, [sys.executable, "-u", program, *arguments])
        set_oom_score("0")  # where memory is short, the worker shall go, not this small process
        try:
            status = wait_exit_status(connection)
        except OSError:  # nobody will tell how it ends
            return
    end_as(status)


if __name__ == "__main__":
    main()
