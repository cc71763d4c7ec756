"""Workers of a local Ray forked from one process that has imported PyTorch, in place of importing it each."""

ADDRESS = "RAYFACE_FORK_SERVER"
"""Environment variable: path of the fork server's socket."""
