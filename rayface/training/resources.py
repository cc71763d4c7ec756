"""Cluster resources of a run: nodes for its workers, and memory on them."""

import ray

from rayface.config import Config
from rayface.heads.fused_softmax import check_fused_device
from rayface.plan.preflight import check_fits, check_host_fits, memory_per_worker
from rayface.session import is_cluster, require_workers, takes_gpu


def uses_gpu(config: Config) -> bool:
    """Return whether each worker takes a GPU; call it inside a Ray session."""
    return takes_gpu(config.train.device)


def require_resources(config: Config, num_classes: int, address: str | None) -> None:
    """Wait for the nodes that the workers need, and refuse a run that does not fit into their memory.

    Raises:
        ValueError: one line.
        NoRoomError: the nodes did not join in time.
    """
    train = config.train
    wait = train.wait_for_nodes if is_cluster(address) else 0.0
    require_workers(train.device, train.cpus_per_worker, train.min_workers, wait=wait)
    check_memory(config, num_classes)


def check_memory(config: Config, num_classes: int) -> None:
    """Refuse a run that cannot fit, by the memory of a worker's node: the driver's machine may differ."""
    gpu = uses_gpu(config)
    if not gpu and config.head.kernel == "fused":
        check_fused_device("cpu")
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU" if gpu else "CPU", 0) > 0]
    share = -(-config.train.max_workers // max(1, len(nodes)))
    here = [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]

    def available(gpu_memory: bool) -> int | None:
        if here:
            return memory_per_worker(gpu=gpu_memory, workers_per_machine=share)
        # "DEFAULT": on any node. Otherwise a task of a sweep's trial stays in its placement group, which has no CPU.
        where = {"num_cpus": config.train.cpus_per_worker, "num_gpus": int(gpu), "scheduling_strategy": "DEFAULT"}
        place = ray.remote(**where)(memory_per_worker)
        found: int | None = ray.get(place.remote(gpu=gpu_memory, workers_per_machine=share))
        return found

    if (on_device := available(gpu)) is not None:
        check_fits(config, num_classes, on_device, gpu=gpu)
    if gpu and (on_host := available(False)) is not None:
        check_host_fits(config, num_classes, on_host)
