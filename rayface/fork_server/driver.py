"""The command line in a process forked from the fork server of this node, which has imported what a driver needs.

Run as a script, it is what the forked process runs.
"""

import contextlib
import io
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

from rayface.fork_server import ADDRESS, DRIVER_MODULES
from rayface.fork_server.forking import use_rayface_of
from rayface.fork_server.protocol import CONNECT_SECONDS, ENDING_SIGNALS, end_as, send_request, wait_exit_status
from rayface.machine import num_cpus


def run_forked(arguments: Sequence[str]) -> None:
    """Have the command line run in a forked process, and end as it does; return where there is none.

    Signals that end this process go to that one. It is killed if this one is. A program that has imported more before
    it runs the command line, and may have changed it, goes on itself.
    """
    if {"ray", "torch"} & sys.modules.keys():
        return
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(os.environ[ADDRESS])
            process = send_request(connection, __file__, arguments, modules=DRIVER_MODULES)
        except OSError:
            return
        except KeyboardInterrupt:  # while the first process of its kind imports; it is killed, if it is there
            sys.exit(130)
        _pass_signals(process)
        try:
            status = wait_exit_status(connection)
        except OSError:  # the server is gone, and so is the node
            _wait(process)
            sys.exit(1)
    end_as(status)


def _pass_signals(process: int) -> None:
    def send(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for each in ENDING_SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, send)


def _wait(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(process)], [], [])


def _use_all_cpus() -> None:
    """Give the libraries that compute as many threads as in a process that was not forked; the server's have one."""
    # Not above: the command that waits for this process does not need it.
    from threadpoolctl import threadpool_limits

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(num_cpus())
    threadpool_limits(num_cpus())


def main() -> None:
    """Run the command line."""
    del sys.path[0]  # this file's folder
    use_rayface_of(__file__)
    sys.argv[0] = "rayface"
    assert isinstance(sys.stdout, io.TextIOWrapper)  # opened as another process's
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=bool(os.environ.get("PYTHONUNBUFFERED")))
    if "OMP_NUM_THREADS" not in os.environ:
        _use_all_cpus()
    from rayface.cli.command_line import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
