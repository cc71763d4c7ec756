"""Processes forked from one that has imported PyTorch: workers of a training, and drivers on a node of a cluster."""

ADDRESS = "RAYFACE_FORK_SERVER"
"""Environment variable: path of the fork server's socket."""
OWN_MODULES = ("rayface.training.builders", "rayface.fork_server.kernels", "rayface.data.decode")
"""What workers import of this package, without Ray."""
# Ray's core in C++ reads the environment when it is imported: it names the job and the node.
WORKER_MODULES = (*OWN_MODULES, "rayface.fork_server.with_ray")
"""What workers import in the environment of their job and node."""
DRIVER_MODULES = (*WORKER_MODULES, "rayface.fork_server.with_driver")
"""What drivers import in theirs."""
