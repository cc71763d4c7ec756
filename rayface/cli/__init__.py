"""The command line: one verb each, no logic.

Exit codes: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted, 143 terminated.
"""

import os
import sys
from collections.abc import Sequence

from rayface.collector import collect_less_often
from rayface.fork_server import ADDRESS
from rayface.fork_server.launch import close_prestarted, prestart_fork_server

_TRAINING = ("train", "tune", "run")
_WITH_PYTORCH = (*_TRAINING, "embed", "prune", "cluster", "evaluate", "export")


def main() -> None:
    """Run the command line; errors are one line on stderr unless --debug asks for the traceback."""
    collect_less_often()
    arguments = sys.argv[1:]
    if _is_one_of(_WITH_PYTORCH, arguments) and ADDRESS in os.environ:
        from rayface.fork_server.driver import run_forked

        run_forked(arguments)
    if _is_one_of(_TRAINING, arguments) and not _on_cluster(arguments):
        prestart_fork_server()  # it imports while the verbs are imported
    try:
        from rayface.cli.command_line import run_command_line

        run_command_line()
    finally:
        close_prestarted()


def _is_one_of(verbs: Sequence[str], arguments: Sequence[str]) -> bool:
    """Return whether one of the verbs will run, as far as the arguments tell."""
    return bool(arguments) and arguments[0] in verbs and not {"--help", "-h"} & set(arguments)


def _on_cluster(arguments: Sequence[str]) -> bool:
    """Return whether a verb uses a Ray that runs."""
    return bool(os.environ.get("RAY_ADDRESS")) or any("address" in argument for argument in arguments)
