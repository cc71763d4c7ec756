"""Memory of a training rank by part, for rayface's head and for a straightforward one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

import torch

from rayface.heads import head_class
from rayface.heads.shape import HeadMemory, HeadShape
from rayface.plan.backbone_cost import NetSize, net_size
from rayface.precision import uses_bf16

if TYPE_CHECKING:
    from rayface.config import Config

Variant = Literal["chunked", "dense", "data_parallel"]

# CUDA context, NCCL channels, cuDNN workspaces and allocator fragmentation per GPU: fitted to one row of a published
# table, see published.py. Other versions of drivers and libraries differ by some hundred MB.
GPU_OVERHEAD = 1810 * 2**20
# Without NCCL: about 0.5 GiB of context, 0.2 of workspaces, 0.4 of fragmentation. An estimate, not run on a GPU.
SINGLE_GPU_OVERHEAD = 1100 * 2**20
# Resident memory of a CPU worker that has imported torch and Ray: 435 MiB measured, rounded up.
CPU_OVERHEAD = 600 * 2**20

# The straightforward head under autocast, in matrices of (rows, D) fp32: weight and momentum; normalised rows, their
# 16-bit copy and its gradient (half each), the gradients with respect to normalised rows and to rows, and two temporary
# matrices of the normalisation's backward pass. Counted, not fitted, but compared with the published table.
DENSE_ROW_COPIES = 8
# Matrices of (B, rows) fp32 alive at its peak: raw, 16-bit, scaled, shifted, exponentials, gradients. Fitted.
DENSE_LOGIT_COPIES = 11


@dataclass(frozen=True, kw_only=True)
class Job(HeadShape):
    """Everything that the memory and time of a step depend on. The batch is global, sizes of types are in bytes."""

    net: NetSize
    head: str
    """Name of the head in HEADS."""
    image_size: int
    bf16: bool
    recompute: bool
    piece: int | None
    """Images per micro-batch of a rank; None: its whole part of the batch."""
    mirrors: int
    """Copies of its state that a rank keeps outside itself: two on its node, and two on the next of several nodes."""
    averaged: bool = False
    """A running average of the backbone's weights is kept."""

    @property
    def images(self) -> int:
        """Images of a rank in a step."""
        return self.rank_batch * self.images_per_row

    @property
    def images_per_row(self) -> int:
        """Images of a row of the batch."""
        return 1 if head_class(self.head).stream == "images" else 2

    @property
    def backbone_passes(self) -> int:
        """Images of a row that the backbone embeds with gradient."""
        return head_class(self.head).backbone_passes

    @property
    def network_passes(self) -> int:
        """Images of a row that networks of the head embed."""
        return head_class(self.head).network_passes


def job_of(config: Config, num_classes: int, *, gpu: bool, recompute: bool = False) -> Job:
    """Return the job of a config.

    Args:
        num_classes: C, size of the joint label space.
        gpu: the ranks have GPUs; else they are processes on CPUs.
        recompute: the backbone recomputes its blocks' activations in the backward pass.

    Raises:
        ValueError: invalid settings, one line.
    """
    # Not above: it needs pydantic, and the benchmark of a GPU plans without a config.
    from rayface.heads.from_config import build_config_options

    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes}: must be at least 1")
    train = config.train
    recompute = recompute or config.backbone.checkpointing
    bf16 = (gpu and train.precision == "auto") or uses_bf16(train.precision, torch.device("cpu"))
    net = net_size(config, bf16=bf16, recompute=recompute)
    return Job(
        net=net,
        backbone_bytes=net.weight_bytes,
        image_bytes=4 * 3 * config.data.image_size**2,
        options=build_config_options(config.head),
        averaged=train.ema is not None,
        head=config.head.name,
        num_classes=num_classes,
        num_workers=train.min_workers,
        piece=train.max_batch_per_worker,
        mirrors=(4 if gpu and train.min_workers > 1 else 2) if train.mirror_every else 0,
        batch_size=train.batch_size,
        embedding_size=config.backbone.embedding_size,
        image_size=config.data.image_size,
        gpu=gpu,
        bf16=bf16,
        recompute=recompute,
        **_of_head(config, gpu=gpu, bf16=bf16),
    )


class HeadFields(TypedDict):
    """Fields of a HeadShape that the config groups `head` and `optim` decide."""

    sample_rate: float
    storage_bytes: int
    compute_bytes: int
    moments: int
    logit_memory: int
    masks_conflicts: bool
    updates_all_rows: bool
    host_memory: bool
    fetches_rows: bool
    fused: bool


def _of_head(config: Config, *, gpu: bool, bf16: bool) -> HeadFields:
    """Return the fields of HeadShape that the config groups `head` and `optim` decide."""
    # Not above: it needs pydantic, as in `job_of`.
    from rayface.heads.from_config import compute_dtype_of

    head, optim = config.head, config.optim
    return {
        "sample_rate": head.sample_rate,
        "storage_bytes": 2 if head.storage_dtype == "bf16" else 4,
        "compute_bytes": 2 if compute_dtype_of(head, gpu=gpu, bf16=bf16) == "bf16" else 4,
        "moments": 2 if optim.name == "adamw" else int(optim.momentum > 0),
        "logit_memory": head.logit_memory,
        "masks_conflicts": head.conflict_threshold is not None,
        "updates_all_rows": head.center_update == "dense",
        "host_memory": head.host_memory and gpu,
        "fetches_rows": head.host_memory and head.sample_rate < 1,
        "fused": head.kernel == "fused",
    }


def memory(job: Job, variant: Variant = "chunked") -> dict[str, int]:
    """Return the bytes of a rank's device by part, at the peak of a step: the end of the forward pass.

    Args:
        variant: "chunked" is the configured head. "dense" is a model-parallel head with full logits and a dense
            gradient, as in arcface_torch; "data_parallel" has all rows and their dense gradient on every rank.
    """
    if variant == "chunked":
        parts = {**_backbone(job, bucket_copies=0), **_head(job).device}
        if job.gpu:
            return parts
        copy = checkpoint_bytes(job)
        return {**parts, "checkpoint_copy": copy, "mirror": job.mirrors * copy}
    backbone = _backbone(job, bucket_copies=1)
    if variant == "dense":
        return {**backbone, **_dense_head(job, local_batch=job.batch_size)}
    everything = replace(job, num_workers=1)
    head = _dense_head(everything, local_batch=job.images)
    return {**backbone, **head, "ddp_buckets": backbone["ddp_buckets"] + head["class_centers"]}


def host_memory(job: Job) -> int:
    """Return the host bytes of a rank with a GPU: the head's, the copy that checkpoints are of, and the mirror's."""
    if not job.gpu:
        return 0
    return _head(job).host + (1 + job.mirrors) * checkpoint_bytes(job)


def checkpoint_bytes(job: Job) -> int:
    """Return the bytes of a rank's copy of its state, which is written in the background."""
    backbone = _backbone(job, bucket_copies=0)
    weights = backbone["backbone_weights"] + backbone["weight_average"]
    return weights + backbone["backbone_optimizer"] + _head(job).state


def _head(job: Job) -> HeadMemory:
    return head_class(job.head).memory(job)


def _backbone(job: Job, *, bucket_copies: int) -> dict[str, int]:
    net, images = job.net, job.images
    trained = job.rank_batch * job.backbone_passes
    pixels = 3 * job.image_size**2
    # Our buckets are views of the gradients (gradient_as_bucket_view); by default DDP copies them.
    buckets = bucket_copies * 4 * net.trainable if job.num_workers > 1 else 0
    return {
        "backbone_weights": net.weight_bytes,
        "weight_average": net.weight_bytes * job.averaged,
        "backbone_gradients": 4 * net.trainable,
        "backbone_optimizer": 4 * net.trainable * job.moments,
        "ddp_buckets": buckets,
        "activations": net.activation_bytes(min(trained, job.piece or trained)),
        # as read (uint8), augmented (fp32), and in the network's memory format (fp32)
        "input_buffers": images * pixels * (1 + 4 + 4),
        "overhead": _overhead(job),
    }


def _overhead(job: Job) -> int:
    if not job.gpu:
        return CPU_OVERHEAD
    return GPU_OVERHEAD if job.num_workers > 1 else SINGLE_GPU_OVERHEAD


def _dense_head(job: Job, *, local_batch: int) -> dict[str, int]:
    row = 4 * job.embedding_size
    # Sampled centers and their momentum are copies of rows of the full matrices.
    copies = DENSE_ROW_COPIES - (2 if job.sample_rate == 1 else 0)
    return {
        "class_centers": job.rows * row,
        "center_moments": job.rows * row * job.moments,
        "sampled_rows": job.sampled_rows * row * copies,
        "logits": job.sampled_rows * local_batch * 4 * DENSE_LOGIT_COPIES,
        "gathered_embeddings": 8 * job.batch_size * (job.embedding_size + 2) * 4,
    }
