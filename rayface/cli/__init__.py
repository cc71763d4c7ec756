"""The command line: one verb each, no logic.

Exit codes: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted, 143 terminated.
"""

import sys
from collections.abc import Sequence

from rayface.fork_server.launch import close_prestarted, prestart_fork_server

_TRAINING = ("train", "tune", "run")


def main() -> None:
    """Run the command line; errors are one line on stderr unless --debug asks for the traceback."""
    if _will_train_here(sys.argv[1:]):
        prestart_fork_server()  # it imports while the verbs are imported
    try:
        from rayface.cli.command_line import run_command_line

        run_command_line()
    finally:
        close_prestarted()


def _will_train_here(arguments: Sequence[str]) -> bool:
    """Return whether a verb will start workers on a local Ray, as far as its arguments tell."""
    elsewhere = any("address" in argument or argument in ("--help", "-h") for argument in arguments)
    return bool(arguments) and arguments[0] in _TRAINING and not elsewhere
