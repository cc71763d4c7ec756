"""Gradient compression between workers, by PyTorch's communication hooks."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from rayface.config import TrainConfig
from rayface.training.distributed import World

_STATE = "_rayface_powersgd"


def compress(parallel: DistributedDataParallel, train: TrainConfig, world: World) -> None:
    """Register the communication hook of train.gradient_compression.

    PowerSGD (arXiv 1905.13727) sends matrices as low-rank products and adds the error of a step to the next one. The
    error is local to each rank, as large as the gradients, and not part of checkpoints.

    Raises:
        ValueError: bf16 on a device that cannot sum it.
    """
    kind = train.gradient_compression
    if kind == "bf16" and world.device.type == "cpu":  # not supported by torch
        raise ValueError("train.gradient_compression: bf16: requires nccl, CPU workers use gloo: use fp16")
    if kind == "powersgd":
        state = PowerSGDState(
            None, matrix_approximation_rank=train.powersgd_rank, start_powerSGD_iter=train.powersgd_start
        )
        setattr(parallel, _STATE, state)
        parallel.register_comm_hook(state, _one_by_one if world.device.type == "cpu" else powerSGD_hook)
    elif kind != "none":
        parallel.register_comm_hook(None, {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}[kind])


def _one_by_one(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PowerSGD for gloo, which matches collectives by call order: those of two buckets must not interleave."""
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


def forget_errors(parallel: nn.Module) -> None:
    """Reset PowerSGD's error feedback, as a resumed run does: a non-finite gradient would persist in it."""
    state: PowerSGDState | None = getattr(parallel, _STATE, None)
    if state is not None:
        for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            kept.clear()
        state.iter = 0
