"""A Ray to work on: the cluster that is named, else one of this process's own that ends with it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int = 1, debug: bool = False) -> Iterator[None]:
    """Connect to Ray, or start a local one that is stopped at the end.

    Args:
        address: of a cluster; None: RAY_ADDRESS, else a local Ray.
        num_cpus: CPUs that the job needs; a local Ray offers them even on fewer cores.
        debug: show the logs of Ray and of its workers.

    Raises:
        ValueError: when the cluster does not answer or has fewer CPUs.
    """
    if ray.is_initialized():
        yield
        return
    # Read by Train's controller when it starts; the default of 2 s is how late it sees that workers are done.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    level = logging.INFO if debug else logging.ERROR
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, logging_level=level, log_to_driver=debug)
        else:
            ray.init(
                num_cpus=max(os.cpu_count() or 1, num_cpus),
                include_dashboard=False,
                logging_level=level,
                log_to_driver=debug,
            )
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"--address: {address}: no Ray cluster answers: {text}") from error
    try:
        have = ray.cluster_resources().get("CPU", 0)
        if have < num_cpus:
            raise ValueError(
                f"train.num_workers: needs {num_cpus} CPUs, the cluster has {have:g}: use fewer workers or add nodes"
            )
        yield
    finally:
        ray.shutdown()
