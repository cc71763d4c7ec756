"""The script that Ray runs in place of its own default_worker.py: has it run in a process of the fork server.

Ray knows a worker by the process that registers, the forked one; this one waits for it and ends as it does.
"""

import os
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from rayface.forks.protocol import ADDRESS, ask, status_of_forked


def main() -> None:
    """Have a worker forked, or become one where that cannot be."""
    ray = find_spec("ray")  # not imported: that takes longer than all else here
    assert ray is not None
    assert ray.origin is not None
    program = str(Path(ray.origin).parent / "_private" / "workers" / "default_worker.py")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[ADDRESS])
            ask(connection, program, sys.argv[1:])
        except (OSError, KeyError):
            os.execv(sys.executable, [sys.executable, "-u", program, *sys.argv[1:]])
        try:
            status = status_of_forked(connection)
        except OSError:  # nobody will tell how it ends
            return
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
