"""How many tasks of Ray read a stream beside training, what each reserves, and the process of the first one."""

import ray


def read_tasks(readers: int, reserved_cpus: float) -> tuple[int, float]:
    """Return the number of concurrent read tasks, and the CPUs that Ray reserves for each.

    A task may count only on CPUs that no training holds: its workers keep theirs until they end, and wait for the task.
    Without such CPUs it reserves none; readers and workers then share the CPUs by the operating system.

    Args:
        readers: their number; 0: two for each CPU that training leaves free.
        reserved_cpus: what all trainings hold.
    """
    free = int(ray.cluster_resources().get("CPU", 1) - reserved_cpus)
    # Between two tasks a reader waits for Ray Data's loop, 10 to 40 ms; a second task per CPU fills the gap.
    return readers or 2 * max(1, free), 0.5 if free >= 1 else 0.0


def start_process(cpus: float) -> None:
    """Have Ray start the process of the first read task, while the ranks build their model and Ray Data plans."""
    ray.remote(_nothing).options(num_cpus=cpus).remote()


def _nothing() -> None:
    """Ray keeps the process that has done it for the next task."""
