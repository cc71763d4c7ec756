"""Groups of training: optimizer, schedule and run, with distillation and recovery."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config_fields import (
    STRICT,
    DiskPath,
    Fixed,
    NotNegative,
    Numbers,
    Operational,
    PathText,
    Positive,
    Shown,
    Workers,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimConfig:
    """The optimizer of backbone and class centers."""

    name: Shown[Fixed[Literal["sgd", "adamw"]]] = "sgd"
    """Optimizer: sgd or adamw."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Maximum norm of the backbone's gradient. Unset: no clipping."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleConfig:
    """The learning-rate schedule."""

    name: str = "polynomial"
    """Schedule: polynomial, multi_step, cosine, constant, plateau, fastface, or one of a plugin."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up; not with plateau and fastface."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of polynomial."""
    milestones: Numbers = ()
    """Epochs after which multi_step multiplies the learning rate by gamma."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor applied by multi_step."""
    detector: Literal["ema", "haar_window"] = "ema"
    """Plateau detector of fastface: ema (slope of smoothed losses) or haar_window."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Smoothing factor of the loss per step, for fastface and plateau."""
    beta: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Smoothing factor of the slope per step, for fastface."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Detector value below which the loss counts as flat. Unset: 5e-5 (loss per step) for ema, 0.06 for haar_window."""
    lambda_total: Annotated[float, Field(gt=0)] | None = None
    """Replaces threshold, alpha and beta of ema: threshold * total steps, with alpha = beta = alpha_total / total
    steps."""
    alpha_total: Annotated[float, Field(gt=0)] = 200.0
    """Smoothing factor * total steps, used with lambda_total."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of all steps for which the loss must be flat before the rate is lowered, for fastface and plateau."""
    decay: Annotated[float, Field(gt=1)] = 2.0
    """Divisor of the learning rate at each plateau, for fastface and plateau."""
    max_decays: NotNegative = 8
    """Maximum number of decays since the start or the last restart."""
    window: Annotated[int, Field(gt=1, multiple_of=2)] = 4000
    """Number of steps in the window of haar_window, m."""
    restart_after: Positive | None = None
    """Number of successive plateaus after which the rate is multiplied by restart_factor instead. Unset: never."""
    restart_factor: Annotated[float, Field(gt=1)] = 4.0
    """Factor applied to the learning rate at a restart."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The training run."""

    epochs: Annotated[float, Field(gt=0)] = 20
    """Passes over the training data."""
    batch_size: Shown[Fixed[Positive]] = 128
    """Global batch size, over all workers."""
    num_workers: Shown[Operational[Workers]] = 1
    """Number of workers, or [least, most]: as many as fit in the cluster, adjusted when nodes leave or join."""
    cpus_per_worker: Operational[Positive] = 1
    """CPUs that a worker reserves."""
    wait_for_nodes: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds to wait for missing nodes of a cluster before a job is refused, or a run without enough nodes stops."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device of the workers. auto: a GPU if the cluster has one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the backbone and the teacher. auto: bf16 if the device has fast bf16 products; fp32: no TF32."""
    gradient_compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """Compression of the backbone's gradients between workers."""
    powersgd_rank: Positive = 1
    """Rank of the approximation that powersgd sends for a gradient; usually 1 to 4."""
    powersgd_start: Annotated[int, Field(ge=2)] = 1000
    """Steps with uncompressed gradients before powersgd starts; counted anew after a resume or roll-back."""
    static_graph: bool = False
    """Tell DistributedDataParallel that all steps use the same layers in the same order. Not with gradient accumulation
    (max_batch_per_worker, resize=accumulate) or backbone.compile."""
    teacher: PathText | None = None
    """Distil from this model: run directory, model.safetensors, .onnx, or a published .pt/.pth with
    teacher_backbone."""
    teacher_backbone: str | None = None
    """Backbone of a published teacher, for example r50."""
    teacher_cache: Operational[DiskPath | None] = None
    """Directory for the teacher's embeddings of data.train, computed once for all runs. Unset: embed every augmented
    image in every step."""
    distillation: Literal["angular", "feature", "center"] = "angular"
    """Target of a student's embedding: direction of the teacher's embedding (angular), the embedding itself (feature),
    or direction of the teacher's mean embedding of the identity (center; needs teacher_cache)."""
    distillation_weight: Annotated[float, Field(ge=0)] = 7.0
    """Weight of the distillation loss; the head's loss has weight 1."""
    seed: Shown[Fixed[NotNegative]] = 0
    """Random seed of initial weights, sample order, augmentation, dropout and sampled classes."""
    ema: Fixed[Annotated[float, Field(gt=0, lt=1)] | None] = None
    """Decay of a running average of the backbone's weights, which is evaluated and exported, for example 0.9999; lower
    in the first steps. Unset: no average."""
    output: Operational[PathText | None] = None
    """Run directory: on a disk that all nodes share, or a URI. Unset: the next free runs/NAME-001."""
    checkpoint_every: Operational[NotNegative] = 0
    """Steps between checkpoints. 0: one per epoch."""
    keep_checkpoints: Operational[Positive] = 3
    """Number of most recent checkpoints to keep, in addition to the best one."""
    mirror_every: Operational[NotNegative] = 100
    """Steps between in-memory copies of the training state; failed workers restart from the newest copy. 0: restart
    from checkpoints only."""
    log_every: Operational[Positive] = 10
    """Steps between logged metrics."""
    max_failures: Operational[NotNegative] = 3
    """Maximum number of restarts from the last checkpoint or in-memory copy after workers died or lost contact."""
    hang_timeout: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds without progress after which the slowest rank is reported and workers restart; up to the first batch 30
    minutes more. 0: never."""
    on_nan: Literal["stop", "skip", "lower_lr"] = "stop"
    """Reaction to a non-finite loss or gradient: stop, roll back and skip that batch (skip), or roll back and continue
    at a lower learning rate (lower_lr)."""
    nan_lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor applied to the learning rate at each lower_lr."""
    max_rollbacks: NotNegative = 3
    """Maximum number of roll-backs per run; after that, a non-finite step stops it."""
    max_batch_per_worker: Annotated[int, Field(ge=2)] | None = None
    """Maximum images per micro-batch of a worker; a larger part of the global batch is split into micro-batches, each
    of which holds head.logit_memory of logits until the step."""
    resize: Literal["accumulate", "rescale_lr"] = "accumulate"
    """With micro-batches: one step per global batch (accumulate), or one step per micro-batch with the learning rate
    scaled by its fraction of the batch (rescale_lr)."""
    grace_seconds: Operational[Annotated[float, Field(ge=0)]] = 30.0
    """Seconds that workers have to save a checkpoint after Ctrl-C or SIGTERM."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
