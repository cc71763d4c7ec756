"""What Ray Train's controller runs of a training; importable without PyTorch, which the controller does not need."""

import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from rayface.machine import keep_freed_memory, num_cpus, pin_exact_sizes
from rayface.ray_internals.train import FixedScalingPolicy, TrainingFramework, get_address_and_port, torch_process_group
from rayface.training.timeouts import JOIN


@dataclass
class ProcessGroupConfig(BackendConfig):
    """As Ray Train's TorchConfig, which takes 1.2 s of CPU time more to unpickle: it imports PyTorch.

    Attributes:
        timeout_s: when a collective gives up, seconds.
        backend: nccl or gloo; TorchTrainer sets it.
    """

    timeout_s: int = 1800
    backend: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        return torch_process_group().TorchConfig().train_func_context

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class ProcessGroup(Backend):
    """Joins the workers to one process group of PyTorch's; two calls to each worker.

    They do not leave it: they are killed, and until then a thread may be writing a checkpoint with collectives.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        ranks = range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, _prepare, backend_config) for rank in ranks])
        address, port = worker_group.execute_single(0, get_address_and_port)
        url = f"tcp://{_host(address)}:{port}"
        ray.get(
            [worker_group.execute_single_async(rank, _join, rank, len(ranks), url, backend_config) for rank in ranks]
        )


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _prepare(config: ProcessGroupConfig) -> None:
    """Import PyTorch, which takes a slow disk minutes, before the time for joining begins."""
    # Read when PyTorch is imported; `use_cores` sets it where that is done already.
    local_size = ray.train.get_context().get_local_world_size()
    os.environ["OMP_NUM_THREADS"] = str(max(1, num_cpus() // local_size))
    if config.backend == "gloo":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows a worker without a GPU all of its node, others' too
        keep_freed_memory()
    else:
        pin_exact_sizes()
    torch_process_group()


def _join(rank: int, size: int, url: str, config: ProcessGroupConfig) -> None:
    internals = torch_process_group()
    internals._set_torch_distributed_env_vars()
    joined_within = min(JOIN, config.timeout_s)
    try:
        internals._setup_torch_process_group(config.backend, rank, size, url, joined_within)
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"rank {rank} of {size} cannot join the others at {url} within {joined_within} s: {reason}: open the ports "
            "between the nodes"
        ) from None
    if config.timeout_s != joined_within:
        from torch.distributed.distributed_c10d import _set_pg_timeout

        _set_pg_timeout(timedelta(seconds=config.timeout_s))


class LocalScalingPolicy(FixedScalingPolicy):
    """A fixed number of workers on a local Ray: nobody is asked for nodes, which would start an actor to ask."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass
