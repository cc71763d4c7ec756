"""Build the parts of a run from its config, on the driver (to check it) and on the workers."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rayface.backbones import build_backbone
from rayface.backbones.weights import fill_backbone
from rayface.config import Config
from rayface.heads import Head, build_head
from rayface.heads.from_config import head_settings
from rayface.models.model_files import weights_file
from rayface.training.distributed import World
from rayface.training.gradient_compression import compress, forget_errors
from rayface.triton_compiler import check_triton_compiler


def build_config_backbone(config: Config) -> nn.Module:
    """Build the backbone with random weights for data.image_size.

    Raises:
        ValueError: an unknown name or a value out of range.
    """
    backbone = config.backbone
    if backbone.compile and backbone.checkpointing:  # dynamo cannot trace the code that freezes batch statistics
        raise ValueError("backbone.compile: true: cannot be combined with backbone.checkpointing: choose one of them")
    options = {"checkpointing": True} if backbone.checkpointing else {}
    return build_backbone(
        backbone.name,
        embedding_size=backbone.embedding_size,
        image_size=config.data.image_size,
        width=backbone.width,
        dropout=backbone.dropout,
        **options,
    )


def build_config_head(config: Config, num_classes: int, world: World, backbone: nn.Module) -> Head:
    """Build this rank's part of the head.

    Raises:
        ValueError: an unknown head or margin, or a value out of range.
    """
    return build_head(config.head.name, head_settings(config, num_classes, device=world.device, backbone=backbone))


def no_grad_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Inside the context, a data-parallel module accumulates gradients on each rank without averaging them."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def load_start(backbone: nn.Module, config: Config) -> None:
    """Load backbone.weights into the backbone, if it is set.

    Raises:
        ValueError: no such file, or weights that do not fit.
    """
    if config.backbone.weights is not None:
        fill_backbone(backbone, weights_file(config.backbone.weights), config.backbone.name)


def data_parallel(backbone: nn.Module, world: World, config: Config) -> nn.Module:
    """Return the backbone to train through: compiled if backbone.compile is set, gradients averaged over the ranks.

    Raises:
        ValueError: backbone.compile without a compiler, or a gradient compression that the workers do not support.
    """
    net = compiled(backbone, world) if config.backbone.compile else backbone
    if world.size == 1:
        return net
    # Batch-norm statistics are local to each rank during training, and are averaged when they are used.
    parallel = DistributedDataParallel(
        net,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        static_graph=config.train.static_graph,
    )
    compress(parallel, config.train, world)
    ordered = world.size > 2 or config.train.gradient_compression == "powersgd"
    if ordered and not config.backbone.compile:  # it would compile a second time, for these images
        _settle_buckets(parallel, world, config.data.image_size)
    return parallel


def _settle_buckets(parallel: DistributedDataParallel, world: World, image_size: int) -> None:
    """Let DistributedDataParallel order the gradients in its buckets now, in a pass whose gradients are dropped.

    It does so after the first backward pass. With three or more ranks the order in which an all-reduce adds them
    depends on a gradient's place, and PowerSGD's result on its bucket: the first step of a resumed run would round
    otherwise than the same step of a run that goes on. In the mode of training, in which some nets use parameters that
    they do not use in evaluation.
    """
    buffers = [(buffer, buffer.clone()) for buffer in parallel.buffers()]  # batch-norm statistics
    images = torch.zeros(2, 3, image_size, image_size, device=world.device)
    for _ in range(2):  # the order is taken over at the start of the second
        parallel(images.contiguous(memory_format=torch.channels_last)).float().sum().backward()
    for buffer, before in buffers:
        buffer.copy_(before)
    parallel.zero_grad(set_to_none=True)
    forget_errors(parallel)


def compiled(backbone: nn.Module, world: World) -> nn.Module:
    """Return the backbone through torch.compile; the parameters are shared.

    Raises:
        ValueError: torch.compile generates C++ on a CPU and Triton kernels on a GPU, and this machine lacks a compiler.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if world.device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            f"backbone.compile: true: needs a C++ compiler on a CPU, no {' or '.join(compilers)} was found: install "
            "one, or leave it out"
        )
    if world.device.type == "cuda":
        check_triton_compiler("backbone.compile: true", "leave it out")
    net: nn.Module = torch.compile(backbone)  # type: ignore[assignment]
    return net
