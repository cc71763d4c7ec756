"""Bytes of every part of a training rank, ours and those of the straightforward class layer."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from rayface.config import Config
from rayface.heads.class_centers import NOISE_SIZE
from rayface.heads.sharded_softmax import CPU_CHUNK_BYTES, GPU_CHUNK_ROWS
from rayface.plan.net import NetSize, net_size
from rayface.training.distributed import fast_bf16

Variant = Literal["chunked", "dense", "data_parallel"]

# CUDA context, NCCL's channels, cuDNN's workspaces and what the allocator cannot use, per GPU: fitted to one row of a
# published table, see published.py. Another driver or library will differ by some hundred MB.
GPU_OVERHEAD = 1810 * 2**20
# Resident memory of a CPU worker that has imported torch and Ray: 435 MiB measured, rounded up.
CPU_OVERHEAD = 600 * 2**20

# The straightforward layer under autocast, in matrices of (rows, D) fp32: weight and momentum; normalised rows, their
# 16-bit copy and its gradient (a half each), the gradient by normalised rows, the gradient by rows, and two temporaries
# of the normalisation's backward. Counted, with the published table in view.
DENSE_ROW_COPIES = 8
# Matrices of (B, rows) fp32 that live at its peak: raw, 16-bit, scaled, shifted, exponentials, gradients. Fitted.
DENSE_LOGIT_COPIES = 11


@dataclass(frozen=True, kw_only=True)
class Job:
    """What memory and time of a step depend on. Batch is global, sizes of types are bytes."""

    net: NetSize
    num_classes: int
    num_workers: int
    batch_size: int
    embedding_size: int
    image_size: int
    sample_rate: float
    storage_bytes: int
    compute_bytes: int
    moments: int
    """Further matrices of the size of the centers that the head's optimizer keeps."""
    backbone_moments: int
    logit_memory: int
    masks_conflicts: bool
    updates_all_rows: bool
    host_memory: bool
    fetches_rows: bool
    """Sampled rows come from host memory before the loss asks for them."""
    gpu: bool
    bf16: bool
    recompute: bool
    piece: int | None
    """Images that a rank takes at once; None: its whole part of the batch."""

    @property
    def images(self) -> int:
        """Images of a rank in a step."""
        return -(-self.batch_size // self.num_workers)

    @property
    def rows(self) -> int:
        """Class centers of the rank that has most."""
        return -(-self.num_classes // self.num_workers)

    @property
    def sampled_rows(self) -> int:
        """Rows that a step uses: the sample rate's, or the positives where one rank may have more of them."""
        if self.sample_rate == 1:
            return self.rows
        return min(self.rows, max(int(self.sample_rate * self.rows), self.batch_size))

    @property
    def chunk_rows(self) -> int:
        """Rows worked on at once, as ShardSoftmax.chunk_rows."""
        fitting = CPU_CHUNK_BYTES // (max(self.batch_size, self.embedding_size) * self.compute_bytes)
        return max(1, min(GPU_CHUNK_ROWS if self.gpu else fitting, self.logit_memory // (8 * self.batch_size)))

    @property
    def kept_rows(self) -> int:
        """Rows whose exponentials are kept for the update, as ShardSoftmax.keep_buffer; the rest is computed twice."""
        affordable = self.logit_memory // (self.batch_size * self.compute_bytes) - self.chunk_rows
        if self.sampled_rows <= affordable:
            return self.sampled_rows
        return max(0, affordable) // self.chunk_rows * self.chunk_rows


def job_of(config: Config, num_classes: int, *, gpu: bool, recompute: bool = False) -> Job:
    """Return what a config asks of its ranks.

    Args:
        num_classes: C, of the joint label space.
        gpu: the ranks have GPUs; else they are processes on CPUs.
        recompute: the backbone computes its blocks' activations twice.

    Raises:
        ValueError: what cannot be, one line.
    """
    if num_classes < 1:
        raise ValueError(f"--num-classes: {num_classes}: must be at least 1")
    head, train = config.head, config.train
    recompute = recompute or config.backbone.checkpointing
    bf16 = train.precision == "bf16" or (train.precision == "auto" and (gpu or fast_bf16(torch.device("cpu"))))
    moments = 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)
    return Job(
        net=net_size(config, bf16=bf16, recompute=recompute),
        num_classes=num_classes,
        num_workers=train.min_workers,
        piece=train.max_batch_per_worker,
        batch_size=train.batch_size,
        embedding_size=config.backbone.embedding_size,
        image_size=config.data.image_size,
        sample_rate=head.sample_rate,
        storage_bytes=2 if head.storage_dtype == "bf16" else 4,
        compute_bytes=2 if head.compute_dtype == "bf16" else 4,
        moments=moments,
        backbone_moments=moments,
        logit_memory=head.logit_memory,
        masks_conflicts=head.conflict_threshold is not None,
        updates_all_rows=head.center_update == "dense",
        host_memory=head.host_memory and gpu,
        fetches_rows=head.host_memory and head.sample_rate < 1,
        gpu=gpu,
        bf16=bf16,
        recompute=recompute,
    )


def memory(job: Job, variant: Variant = "chunked") -> dict[str, int]:
    """Return the bytes of a rank's device by part, at the peak of a step: the end of the forward pass.

    Args:
        variant: "chunked" is this project's head. "dense" is a model-parallel head with full logits and a gradient of
            its rows' size, as arcface_torch's; "data_parallel" has all rows and their full gradient on every rank.
    """
    if variant == "chunked":
        parts = {**_backbone(job, bucket_copies=0), **_chunked_head(job)}
        return parts if job.gpu else {**parts, "checkpoint_copy": checkpoint_bytes(job)}
    backbone = _backbone(job, bucket_copies=1)
    if variant == "dense":
        return {**backbone, **_dense_head(job, local_batch=job.batch_size)}
    everything = replace(job, num_workers=1)
    head = _dense_head(everything, local_batch=job.images)
    return {**backbone, **head, "ddp_buckets": backbone["ddp_buckets"] + head["class_centers"]}


def host_memory(job: Job) -> int:
    """Return the host bytes of a rank with a GPU: what the head keeps there, and the copy that checkpoints are of."""
    if not job.gpu:
        return 0
    return (_head_state(job) + _fetched_bytes(job) if job.host_memory else 0) + checkpoint_bytes(job)


def checkpoint_bytes(job: Job) -> int:
    """Return the bytes of a rank's copy of its state, which is written while training goes on."""
    backbone = _backbone(job, bucket_copies=0)
    return backbone["backbone_weights"] + backbone["backbone_optimizer"] + _head_state(job)


def _head_state(job: Job) -> int:
    counts = 4 * job.rows if job.moments == 2 else 0  # AdamW's updates of each row
    return center_bytes(job) * (1 + job.moments) + counts


def _fetched_bytes(job: Job) -> int:
    return job.sampled_rows * job.embedding_size * job.storage_bytes if job.fetches_rows else 0


def center_bytes(job: Job) -> int:
    """Return the bytes of a rank's class centers, without moments."""
    return job.rows * job.embedding_size * job.storage_bytes


def _backbone(job: Job, *, bucket_copies: int) -> dict[str, int]:
    net, images = job.net, job.images
    pixels = 3 * job.image_size**2
    # ours are views of the gradients (gradient_as_bucket_view); the default of DDP is a copy
    buckets = bucket_copies * 4 * net.trainable if job.num_workers > 1 else 0
    return {
        "backbone_weights": 4 * net.parameters + net.buffer_bytes,
        "backbone_gradients": 4 * net.trainable,
        "backbone_optimizer": 4 * net.trainable * job.backbone_moments,
        "ddp_buckets": buckets,
        "activations": net.activation_bytes(min(images, job.piece or images)),
        # as read, augmented, and laid out for the net
        "input_buffers": images * pixels * (1 + 4 + 4),
        "overhead": GPU_OVERHEAD if job.gpu else CPU_OVERHEAD,
    }


def _chunked_head(job: Job) -> dict[str, int]:
    centers = 0 if job.host_memory else center_bytes(job)
    return {
        "class_centers": centers,
        "center_moments": 0 if job.host_memory else _head_state(job) - centers,
        "sampled_rows": _row_workspace(job) + _fetched_bytes(job),
        "logits": _logits(job),
        "gathered_embeddings": 8 * job.batch_size * (job.embedding_size + 2) * 4,
    }


def _row_workspace(job: Job) -> int:
    """Chunks of rows that the head works on, and the numbers of the sampled rows."""
    indexed = job.sample_rate < 1
    cells = min(job.chunk_rows, job.sampled_rows) * job.embedding_size
    # a chunk of centers and of each moment: gathered as stored, and in fp32 where that is another type
    gathered = (job.storage_bytes * indexed + 4 * (job.storage_bytes != 4)) * (1 + job.moments)
    in_one_pass = not job.gpu and job.moments < 2  # SGD on a CPU moves rows where they are
    update = 0 if in_one_pass else gathered + 4  # and the gradient's radial part
    products = job.compute_bytes + (2 if job.compute_bytes == 2 else 0)  # unit rows; the gradient in the products' type
    chunk = cells * (update + products + 4)  # and the gradient
    if job.storage_bytes == 2:  # the noise of the rounding
        chunk += 4 * (NOISE_SIZE + job.embedding_size)
    # sampling: the result, the draw, its sort and the merged list, int64 each
    return chunk + (5 * 8 * job.sampled_rows if indexed else 0)


def _logits(job: Job) -> int:
    """Exponentials kept, and one chunk of them where not all are."""
    chunk = min(job.chunk_rows, job.sampled_rows) * job.batch_size
    computed_twice = chunk * job.compute_bytes if job.kept_rows < job.sampled_rows else 0
    return job.kept_rows * job.batch_size * job.compute_bytes + computed_twice + chunk * job.masks_conflicts


def _dense_head(job: Job, *, local_batch: int) -> dict[str, int]:
    row = 4 * job.embedding_size
    # a sample's centers and momentum are copied out of the whole
    copies = DENSE_ROW_COPIES - (2 if job.sample_rate == 1 else 0)
    return {
        "class_centers": job.rows * row,
        "center_moments": job.rows * row * job.moments,
        "sampled_rows": job.sampled_rows * row * copies,
        "logits": job.sampled_rows * local_batch * 4 * DENSE_LOGIT_COPIES,
        "gathered_embeddings": 8 * job.batch_size * (job.embedding_size + 2) * 4,
    }
