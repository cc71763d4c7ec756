"""Cluster resources that the concurrent trials of a sweep need."""

from rayface import config as configs
from rayface.config import Config
from rayface.session import places, require_workers
from rayface.training.resources import worker_resources
from rayface.tuning.spec import Spec


def most_workers(spec: Spec, base: Config) -> Config:
    """Return the base config with the largest number of workers and CPUs per worker of any trial."""
    most = base
    for key in ("train.num_workers", "train.cpus_per_worker"):
        if key in spec.search:
            tried = [configs.with_overrides(most, {key: value}) for value in spec.search[key].edges()]
            most = max(tried, key=worker_cpus)
    return most


def worker_cpus(base: Config) -> int:
    """Return the CPUs that the workers of one trial take."""
    return base.train.max_workers * base.train.cpus_per_worker


def wait_for_nodes(spec: Spec, base: Config) -> None:
    """Wait for the nodes that the concurrent trials need; an autoscaling cluster adds them on request."""
    train, workers = base.train, spec.sweep.concurrency * base.train.max_workers
    setting = "sweep.concurrency * train.num_workers"
    require_workers(train.device, train.cpus_per_worker, workers, wait=train.wait_for_nodes, setting=setting)


def check_room(spec: Spec, base: Config) -> None:
    """Refuse a concurrency that the cluster has no room for: the trials would wait for each other's workers.

    Raises:
        ValueError: one line.
    """
    worker = worker_resources(base)
    workers, room = spec.sweep.concurrency * base.train.max_workers, places(worker)
    if room < workers:
        needs = " and ".join(f"{value:g} {name}" for name, value in worker.items())
        raise ValueError(
            f"sweep.concurrency: {spec.sweep.concurrency}: the trials have {workers} workers of {needs} each, the "
            f"cluster has room for {room}: lower it or train.num_workers, or add nodes"
        )
