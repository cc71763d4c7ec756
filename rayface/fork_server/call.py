"""The script that a forked process runs for `call`: unpickles a call from stdin, and pickles its result to stdout."""

import contextlib
import os
import pickle
import sys

from rayface.fork_server.forking import use_rayface_of

if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what the function prints
        del sys.path[0]  # this file's folder
        use_rayface_of(__file__)
        with contextlib.suppress(Exception):  # the caller tries it again
            function, arguments, options = pickle.load(sys.stdin.buffer)
            pickle.dump(function(*arguments, **options), out)
