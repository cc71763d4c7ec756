"""Cluster resources of a run: nodes for its workers, and memory on them."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayface.config import Config, with_overrides
from rayface.heads.fused_softmax import check_fused_device
from rayface.plan.preflight import check_fits, check_host_fits, memory_per_worker
from rayface.precision import fast_bf16
from rayface.ray_errors import in_one_line
from rayface.session import is_cluster, places, places_on, require_workers, takes_gpu

_ANSWER_SECONDS = 300.0  # in which a node starts a worker and imports PyTorch
logger = logging.getLogger(__name__)


def uses_gpu(config: Config) -> bool:
    """Return whether each worker takes a GPU; call it inside a Ray session."""
    return takes_gpu(config.train.device)


def worker_resources(config: Config) -> dict[str, float]:
    """Return what each worker reserves; call it inside a Ray session."""
    return {"CPU": float(config.train.cpus_per_worker), **({"GPU": 1.0} if uses_gpu(config) else {})}


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
    if wait > 0 and _free_places(worker_resources(config)) < train.min_workers:
        logger.info("waiting up to %g s for CPUs and GPUs that other jobs hold (train.wait_for_nodes)", wait)


def _free_places(bundle: Mapping[str, float]) -> int:
    from rayface.ray_internals.nodes import available_resources_per_node

    return sum(places_on(free, bundle) for free in available_resources_per_node().values())


def check_memory(config: Config, num_classes: int) -> None:
    """Refuse a run that cannot fit, by the memory of a worker's node: the driver's machine may differ.

    With the smallest number of workers, and with the number that the cluster has room for. Ray Train packs workers:
    each node has as many as it has CPUs and GPUs for.
    """
    gpu, bundle = uses_gpu(config), worker_resources(config)
    if not gpu and config.head.kernel == "fused":
        check_fused_device("cpu")
    nodes = [node for node in ray.nodes() if node["Alive"] and places_on(node["Resources"], bundle) > 0]
    if not nodes:
        return
    node = max(nodes, key=lambda node: places_on(node["Resources"], bundle))
    here = [each["NodeID"] for each in nodes] == [ray.get_runtime_context().get_node_id()]
    memory = _memory(gpu) if here else _memory_of(node, gpu)
    precision = {"train.precision": "fp32"} if config.train.precision == "auto" and not memory.bf16 else {}

    def check(workers: int) -> None:
        sized = with_overrides(config, {"train.num_workers": workers, **precision})
        on_host = memory.host and memory.host // min(workers, places_on(node["Resources"], bundle))
        if (available := memory.device if gpu else on_host) is not None:
            check_fits(sized, num_classes, available, gpu=gpu)
        if gpu and on_host is not None:
            check_host_fits(sized, num_classes, on_host)

    least, most = config.train.min_workers, config.train.max_workers
    check(least)
    if (room := min(most, places(bundle))) > least:
        _check_growth(check, least, room)


def _check_growth(check: Callable[[int], None], least: int, most: int) -> None:
    """Refuse an elastic run whose largest number of workers does not fit; name the number that does."""
    try:
        check(most)
    except ValueError as error:
        fitting = most
        while fitting > least:
            fitting = max(least, fitting // 2)
            with contextlib.suppress(ValueError):
                check(fitting)
                break
        raise ValueError(
            f"train.num_workers: [{least},...]: the cluster has room for {most}, which do not fit: use "
            f"train.num_workers=[{least},{fitting}]; with {most}: {error}"
        ) from None


class _Memory(NamedTuple):
    """Bytes of a node's first GPU, and free ones of the node; None: unknown."""

    device: int | None
    host: int | None
    bf16: bool = True
    """Workers there train in bf16 with train.precision=auto."""


def _memory(gpu: bool) -> _Memory:
    device = memory_per_worker(gpu=True, workers_per_machine=1) if gpu else None
    bf16 = fast_bf16(torch.device("cuda" if gpu else "cpu"))
    return _Memory(device, memory_per_worker(gpu=False, workers_per_machine=1), bf16)


def _memory_of(node: Mapping[str, object], gpu: bool) -> _Memory:
    """Ask a node, without CPUs or GPUs: those may be taken by other jobs for hours."""
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    # Its process ends after the call: it may have opened the GPU, whose memory is the workers'.
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=place)(_memory)
    try:
        found: _Memory = ray.get(task.remote(gpu), timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        logger.warning("node %s does not tell its memory, which is not checked: %s", node["NodeID"], in_one_line(error))
        return _Memory(None, None)
    return found
