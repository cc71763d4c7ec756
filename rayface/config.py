"""Typed tree of settings: preset, then file, then `key=value`; unknown keys are refused."""

import difflib
import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from rayface.config_fields import (
    STRICT,
    Bytes,
    Cosine,
    DatabaseUri,
    DiskPath,
    Fixed,
    Fraction,
    Mark,
    Names,
    NotNegative,
    Numbers,
    Operational,
    Options,
    PathLike,
    Paths,
    PathText,
    Positive,
    Seed,
    Share,
    Shown,
    Workers,
    as_mapping,
    field_texts,
    marked,
)
from rayface.credentials import mask, masked
from rayface.files import write_text
from rayface.storage import AnyPath, local_copy
from rayface.values import Tree, is_null, optional_fields, parse_override, read_yaml, shown, to_text


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Training data, and augmentation of its images."""

    train: Paths = ()
    """Dataset directory, or several that are trained on as one."""
    join: Fixed[Literal["names", "labels", "separate"] | None] = None
    """How labels of several directories are joined: by identity name (names), by label number (labels), or not at all
    (separate). Unset: names if all directories have names and at most one has only numbers; labels if no label occurs
    in two directories; otherwise refused. Also applies to the data of other verbs."""
    weights: Fixed[Numbers] = ()
    """Sampling weight of each training directory per epoch: 1 uses every image once, 2 twice, 0.3 a random 30% that
    changes each epoch. Empty: 1 for every directory."""
    image_size: Fixed[Annotated[int, Field(ge=16, le=1024)]] = 112
    """Side length of an image, in pixels; images of other sizes are resized."""
    max_corrupt_fraction: Fraction = 1e-3
    """Maximum fraction of corrupt samples; above it, a job stops."""
    chunk_images: Fixed[Positive] = 8
    """Neighbouring images of a shard that one request reads. Object stores may need 64."""
    window_images: Fixed[Positive] = 4096
    """Images shuffled together (a window); each read task decodes one window."""
    readers: Operational[NotNegative] = 0
    """Number of windows decoded concurrently. 0: chosen from the free CPUs of the cluster."""
    flip: bool = True
    """Mirror each image with probability 0.5."""
    shift: NotNegative = 0
    """Maximum random shift of the image, in pixels."""
    brightness: Fraction = 0.0
    """Maximum random change of brightness, as a fraction."""
    contrast: Fraction = 0.0
    """Maximum random change of contrast, as a fraction."""
    saturation: Fraction = 0.0
    """Maximum random change of saturation, as a fraction."""
    jpeg: Fraction = 0.0
    """Probability of encoding an image as JPEG of a random quality, 20 to 90."""
    crop: Fraction = 0.0
    """Probability of keeping only a random crop, 20 to 100% of the area; the rest is black."""
    low_resolution: Fraction = 0.0
    """Probability of scaling an image down, to 20 to 100% of its side length, and up again."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur, with a standard deviation of 0.3 to 2 pixels."""
    grey: Fraction = 0.0
    """Probability of converting an image to grey."""
    erase: Fraction = 0.0
    """Probability of erasing a random rectangle, 2 to 33% of the area."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """The network that embeds images."""

    name: Shown[Fixed[str]] = "r50"
    """Backbone, as listed by `rayface backbones`, or one of a plugin."""
    embedding_size: Shown[Fixed[Positive]] = 512
    """Length of an embedding, D."""
    width: Shown[Fixed[Annotated[float, Field(gt=0)] | None]] = None
    """Width multiplier for all channel counts. Unset: the backbone's own width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate before the embedding layer."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Train with torch.compile, which needs a C++ compiler on CPUs, and a C compiler and Python.h on GPUs."""
    weights: PathText | None = None
    """Initial weights: run directory, model.safetensors, or a published .pt/.pth of the same backbone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The head: class centers and margin softmax over them."""

    name: Shown[Fixed[str]] = "partial_fc"
    """Name of the head: partial_fc (class centers of all identities), dcq (a queue of keys), f2c (a pool of recent
    identities), or one of a plugin."""
    options: Fixed[Options] = Field(default_factory=dict)
    """Head-specific settings: {queue_size: 8192, momentum: 0.999} for dcq, {pool_size: 8192, momentum: 0.99} for
    f2c."""
    margin: Shown[str] = "cosface"
    """Margin of the softmax: cosface, arcface, combined, adaface, elasticface, magface, curricularface, or one of a
    plugin."""
    margin_value: float | None = None
    """Margin m. Unset: the paper's default."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Scale s of the logits. Unset: the paper's default, 64 for partial_fc, 50 for dcq, 32 for f2c."""
    conflict_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Cosine above which a negative class center is excluded from the softmax (interclass filtering). Unset: never."""
    margin_options: Options = Field(default_factory=dict)
    """Further arguments of the margin, for example {gradient: exact} for arcface or {m1: 1, m2: 0.3, m3: 0.2} for
    combined."""
    sample_rate: Shown[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """Fraction of the negative classes sampled in each step."""
    center_update: Literal["sparse", "dense"] = "sparse"
    """Update only the sampled class centers (sparse) or all of them (dense)."""
    storage_dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type of the stored class centers."""
    compute_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    """Data type of the matrix products with class centers; auto: bf16 on GPUs that train the backbone in bf16
    (train.precision), else fp32. Sums are fp32."""
    kernel: Literal["chunked", "fused"] = "chunked"
    """Implementation of the softmax: PyTorch on chunks of logits (chunked), or Triton kernels that store no logits
    (fused). fused needs a CUDA GPU and a margin that changes only the target's logit; not run on a GPU yet."""
    logit_memory: Bytes = 512 * 2**20
    """Memory for the logits that are computed at once."""
    host_memory: bool = False
    """Keep class centers in pinned host memory and copy only the rows of a step to the GPU."""


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Measure a model by one or several protocols, during training or afterwards."""

    model: PathLike | None = None
    """Model to evaluate: run directory, model.safetensors, .onnx, or a published .pt/.pth with evaluate.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    embeddings: PathText | None = None
    """Embeddings of the images, as written by `rayface embed`, instead of a model."""
    out: Operational[PathText | None] = None
    """Directory for evaluation.json, report.html and the plots."""
    every: Operational[NotNegative] = 0
    """Steps between validations during training. 0: only before the first and after the last step."""
    protocols: Names = ()
    """Evaluation protocols: pairs or bin (10-fold verification), templates (1:1 and 1:N), all_vs_all, or a protocol
    of a plugin. The first one's main figure selects the best checkpoint. Empty: every built-in protocol whose inputs
    are set."""
    pairs: PathText | None = None
    """Pairs of images: LFW's pairs.txt, or a CSV with the columns path_a, path_b (names of images in evaluate.data,
    like 000123.jpg), is_same (1 or 0) and fold (numbers, at least two); `rayface synth --pairs` and `convert --from
    bin` write one."""
    data: Paths = ()
    """Dataset directory, or several, with the images named in pairs."""
    bin: Paths = ()
    """InsightFace .bin file of pairs and their images, or several."""
    templates: PathText | None = None
    """Directory of a benchmark with template lists, as written by `rayface benchmark make`."""
    ijb: DiskPath | None = None
    """Directory of IJB-B or IJB-C, with meta and loose_crop."""
    target: Literal["IJBB", "IJBC"] = "IJBC"
    """Benchmark in `evaluate.ijb`."""
    keep_norm: bool = True
    """Weight the images of a template by the norm of their embeddings."""
    face_scores: bool = True
    """Weight the images of a template by the detection scores of IJB."""
    all_vs_all: Paths = ()
    """Dataset directory, or several, whose images are all compared with each other."""
    group_by: Names = ()
    """Columns of groups, such as race; all_vs_all reports rates within each group."""
    groups: PathText | None = None
    """Table of groups, CSV or parquet, with a column key, identity or label. Unset: the dataset's
    identities.parquet."""
    bootstrap: NotNegative = 1000
    """Number of replicates of the bootstrap over identities, for the intervals. 0: no intervals."""
    leak_check: Paths = ()
    """Training set, or several, that is searched for the test images, by name and by file content."""
    leak_embeddings: PathText | None = None
    """Embeddings of evaluate.leak_check by the same model, to search by embedding as well."""
    leak_above: Cosine = 0.9
    """Cosine above which a training image counts as the same image."""
    write_card: bool = False
    """Replace the metrics and thresholds in the model's model.json and model_card.md."""
    options: Options = Field(default_factory=dict)
    """Settings of a protocol of a plugin."""
    flip: bool = True
    """Add the embedding of the mirrored image."""
    batch_size: Positive = 256
    """Images per batch."""
    cache: Operational[DiskPath | None] = None
    """Cache directory of dataset embeddings, which later evaluations of the same model reuse; on a cluster, one that
    all nodes share. Unset: the user's cache directory."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SynthConfig:
    """Draw a synthetic dataset; it shows no real person."""

    out: Operational[PathText | None] = None
    """Dataset directory to write."""
    identities: Annotated[int, Field(gt=0, le=10**6)] = 200
    """Number of identities."""
    images_per_identity: Annotated[int, Field(gt=0, le=10**4)] = 20
    """Images per identity."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed; the same seed gives the same dataset."""
    pairs: Annotated[int, Field(ge=0, le=10**7, multiple_of=20)] = 0
    """Number of verification pairs to write to pairs.csv."""
    image_size: Annotated[int, Field(ge=16, le=256, multiple_of=2)] = 112
    """Side length of an image, in pixels."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvertConfig:
    """Convert images of another format to a dataset of tar shards."""

    source: Paths = ()
    """Path of the images to convert, or several paths as one dataset, whose labels are joined as data.join says."""
    kind: Names = ()
    """Format of the source: folder (one per identity), rec (MXNet's RecordIO), webface-zip, parquet, hub, lmdb,
    webdataset, list, bin or cfp; see docs/data.md. For several sources: one for each, or one for all."""
    to: str | None = None
    """Write this format instead of a dataset: bin (the pairs of DIR/pairs.csv), folder, hub or parquet. The source is a
    dataset, or has the format of convert.kind."""
    options: Options = Field(default_factory=dict)
    """Settings of the format, for example {image_size: 224, quality: 90} for folder."""
    out: Operational[PathText | None] = None
    """Dataset directory to write: on a disk that all nodes share, or a URI. Run again to resume."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the images: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Encode every image as JPEG of this quality. Unset: keep the bytes of images that are not resized."""
    min_images: Positive = 1
    """Leave out identities with fewer readable images."""
    limit: Positive | None = None
    """Convert only this many images from the start of the source, as a trial. Unset: all."""
    max_corrupt_fraction: Operational[Fraction] = 1.0
    """Maximum fraction of unreadable images; above it, the job stops. Every one is named or counted."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AlignConfig:
    """Find and align the faces of photographs, and write them as a dataset of tar shards."""

    source: Paths = ()
    """Path of the photographs, or several paths as one dataset, whose labels are joined as data.join says."""
    kind: Names = ("folder",)
    """Format of the photographs, see convert.kind."""
    out: Operational[PathText | None] = None
    """Dataset directory to write: on a disk that all nodes share, or a URI. Run again to resume."""
    detector: PathText | None = None
    """Model file of the face detector YuNet: face_detection_yunet_*.onnx of the OpenCV Zoo."""
    min_score: Fraction = 0.6
    """Minimum detection score of a face."""
    image_size: Annotated[int, Field(ge=16)] = 112
    """Side length of an aligned face, in pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the aligned faces."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the faces: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""
    min_images: Positive = 1
    """Leave out identities with fewer faces."""
    limit: Positive | None = None
    """Align only this many photographs from the start of the source, as a trial. Unset: all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmbedConfig:
    """Embed a dataset with a model."""

    model: PathLike | None = None
    """Run directory, model.safetensors, .onnx, or a published .pt/.pth with embed.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    data: Paths = ()
    """Dataset directory, or several as one; see data.train."""
    out: Operational[PathText | None] = None
    """Directory for the parquet files. Run again to resume."""
    flip: bool = True
    """Add the embedding of the mirrored image."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's forward pass."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Data type of the stored embeddings."""
    workers: Operational[Positive | None] = None
    """Number of actors. Unset: one per GPU, else one per CPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruneConfig:
    """Select a core set of embedded images."""

    embeddings: PathText | None = None
    """Directory of parquet files with key, label, embedding, as written by `rayface embed`."""
    data: Paths = ()
    """Dataset that was embedded, or several as one. If set, prune writes the core set as a dataset."""
    out: Operational[PathText | None] = None
    """Directory for the core set: on a disk that all nodes share, or a URI. Run again to resume."""
    method: str = "face_nms"
    """Selection method: face_nms, random, herding, diffprob, or one of a plugin."""
    threshold: Cosine | None = None
    """Cosine to a kept image above which face_nms drops an image; a probability for diffprob. Instead of keep."""
    keep: Share | None = None
    """Fraction of images to keep; the matching threshold is found by bisection."""
    min_images: Positive = 1
    """Minimum number of images to keep of every identity that has them. The paper of diffprob keeps at least 5."""
    global_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an image's sparsity among all images in the score of face_nms."""
    seed: Seed = 0
    """Random seed of the method random and of the sample on which a threshold is searched."""
    baselines: Names = ()
    """Methods to compare with at the same ratio, in addition to random, for example herding or diffprob."""
    head: PathText | None = None
    """Run directory of the embedding model; diffprob uses its class centers."""
    options: Options = Field(default_factory=dict)
    """Further settings of the method, for methods of plugins."""
    write_shards: bool = False
    """Copy the kept images into new shards instead of referring to the shards of prune.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings that a task works on."""
    proxy_fraction: Share | None = None
    """Instead of prune.embeddings: embed prune.data with a proxy model trained on this fraction of the identities."""
    proxy_preset: str = "mini"
    """Preset of the proxy model; training keys override it."""

    @model_validator(mode="after")
    def _check(self) -> "PruneConfig":
        if self.threshold is not None and self.keep is not None:
            raise ValueError("threshold, keep: both are given: must be one of the two, for example prune.keep=0.6")
        if self.embeddings is not None and self.proxy_fraction is not None:
            raise ValueError("embeddings, proxy_fraction: both are given: must be one of the two")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanConfig:
    """Find mislabelled images and duplicate identities in embeddings before pruning. Unset: no search."""

    outliers: Cosine | None = None
    """Find images whose cosine to the mean of their identity is below this."""
    duplicates: Cosine | None = None
    """Find pairs of identities whose centers have a cosine above this."""
    conflicts: Cosine | None = None
    """Find pairs of images of different identities with a cosine above this."""
    bytes: bool = False
    """Find identical files; reads prune.data."""
    exclude: PathText | None = None
    """Embeddings of a test set, whose identities are dropped."""
    above: Cosine | None = None
    """Cosine above which an identity counts as an identity of the test set."""
    drop: Names = ()
    """Findings to drop: outliers, conflicts, bytes."""
    merge: bool = False
    """Merge duplicate identities under the lowest label."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """Findings that are dropped, including identities of the test set."""
        return (*self.drop, *(("test",) if self.above is not None and "test" not in self.drop else ()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusteringConfig:
    """Cluster embedded images into identities."""

    embeddings: PathText | None = None
    """Directory of parquet files with key, label, embedding, as written by `rayface embed`."""
    data: Paths = ()
    """Dataset that was embedded, or several as one. If set, cluster writes a dataset labelled by cluster."""
    out: Operational[PathText | None] = None
    """Directory for the clusters: on a disk that all nodes share, or a URI. Run again to resume."""
    method: Literal["cohesive", "average", "components", "density", "ogmc"] = "cohesive"
    """Clustering method; ogmc works online, in the order of the embeddings."""
    threshold: Cosine | None = None
    """Cosine at or above which two images are one person. Unset: estimated from the embeddings."""
    calibrate: PathText | None = None
    """Labelled embeddings of the same model, whose best threshold is used; instead of clustering.threshold."""
    assign: PathText | None = None
    """Labelled embeddings of known identities: images are assigned to them, and only the others are clustered."""
    far: Fraction = 1e-3
    """False accept rate: fraction of images of strangers that may be assigned to a known identity."""
    stream: bool = False
    """Cluster only the files added since the last run into clustering.out; requires method ogmc."""
    within: bool = False
    """Only split labelled identities: images of two labels never share a cluster; small parts become noise."""
    merge: bool = False
    """With within: also merge parts of different labels that are one person."""
    neighbours: Positive = 40
    """Number of nearest neighbours of an image that are candidates for its cluster."""
    search: Literal["auto", "exact", "lists"] = "auto"
    """Neighbour search: exact, or in inverted lists (approximate). auto: exact up to 200,000 images."""
    probes: Positive = 32
    """Inverted lists probed per image, of about 4·√N lists."""
    min_images: Positive = 2
    """Clusters with fewer images are noise: cluster -1, left out of the dataset."""
    write_shards: bool = False
    """Copy the clustered images into new shards instead of referring to the shards of clustering.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings that a task works on."""

    @model_validator(mode="after")
    def _check(self) -> "ClusteringConfig":
        if self.threshold is not None and self.calibrate is not None:
            raise ValueError("threshold, calibrate: both are given: must be one of the two")
        if self.write_shards and not self.data:
            raise ValueError("write_shards: requires clustering.data, the dataset that was embedded")
        if self.within and self.method == "ogmc":
            raise ValueError("within: true with method ogmc: must be another method, which works on neighbours")
        if self.merge and not self.within:
            raise ValueError("merge: true: must be with within, which finds the parts of labels")
        if self.stream and (self.method != "ogmc" or self.data or (self.threshold is None and self.calibrate is None)):
            raise ValueError("stream: true: must be with method ogmc, threshold or calibrate, and without data")
        if self.assign is not None and (self.within or self.method == "ogmc"):
            raise ValueError("assign: with within or method ogmc: must be without them")
        return self

    def uses_lists(self, images: int) -> bool:
        """Return whether neighbours among so many images are searched in lists."""
        return self.search == "lists" or (self.search == "auto" and images > 200_000)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportConfig:
    """Export a model to ONNX, or as a directory for the Hugging Face Hub."""

    model: PathLike | None = None
    """Run directory, model.safetensors, or a published .pt/.pth with export.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    onnx: Operational[PathText | None] = None
    """File to write; model_card.md is written beside it."""
    hub: Operational[PathText | None] = None
    """Directory to write for the Hugging Face Hub: model.safetensors, config.json and README.md."""
    external_data: bool = False
    """Store weights in a separate file (always done above 1.9 GB)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    """Ray session of a job."""

    address: str | None = None
    """Address of the Ray cluster. Unset: RAY_ADDRESS, else a local Ray that ends with the job."""
    debug: bool = False
    """Show Ray's logs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """Tracking in MLflow."""

    enabled: bool = True
    """Send the run to MLflow."""
    uri: DatabaseUri | None = None
    """MLflow server, or sqlite:///FILE. Unset: MLFLOW_TRACKING_URI, else mlflow.db of the project."""
    experiment: str = "rayface"
    """Name of the MLflow experiment."""
    tensorboard: bool = False
    """Also write an event file for TensorBoard, to tensorboard/ in the output."""
    prometheus: bool = False
    """Also export the latest metrics to Prometheus through Ray; deploy/grafana-dashboard.json displays them."""
    wandb: bool = False
    """Also write an offline run for Weights & Biases, to wandb/ in the output; `wandb sync` uploads it."""
    timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds to wait for MLflow at the end of a run; undelivered records stay in the journal."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    name: Shown[Operational[Annotated[str, Field(min_length=1)]]] = "run"
    """Prefix of run directories and MLflow runs."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: Operational[TrackingConfig] = TrackingConfig()
    synth: SynthConfig = SynthConfig()
    convert: ConvertConfig = ConvertConfig()
    align: AlignConfig = AlignConfig()
    embed: EmbedConfig = EmbedConfig()
    clean: CleanConfig = CleanConfig()
    prune: PruneConfig = PruneConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    export: ExportConfig = ExportConfig()
    cluster: Operational[ClusterConfig] = ClusterConfig()


TRAINING = ("name", "data", "backbone", "head", "optim", "schedule", "train", "evaluate", "tracking")
"""The fields of Config that a training run uses: its config.yaml, checkpoints and MLflow parameters hold these."""
FIXED = frozenset(marked(Config, Mark.FIXED))
OPERATIONAL = frozenset(marked(Config, Mark.OPERATIONAL))
SHOWN = tuple(marked(Config, Mark.SHOWN))

_ADAPTER = TypeAdapter(Config)
_GROUPS = {f.name for f in fields(Config) if is_dataclass(f.default)}
_OPTIONAL = {f"{f.name}.{key}" for f in fields(Config) if f.name in _GROUPS for key in optional_fields(type(f.default))}
_MAPPINGS = {
    "convert.options",
    "evaluate.options",
    "head.margin_options",
    "head.options",
    "prune.options",
}  # keys that hold keys of their own
_PROTOCOL = "protocol"  # the key before evaluate.protocols


def load(
    preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Config:
    """Resolve preset, then YAML file, a path or URI, then overrides; see `with_overrides`.

    Raises:
        ValueError: one line with the key, its value, the rule and the remedy.
    """
    from rayface.presets import preset_values

    config = _build(preset_values(preset) if preset else {})
    if file is not None:
        config = _changed(config, read_yaml(local_copy(file)), source=mask(str(file)))
    return with_overrides(config, overrides)


def with_overrides(config: Config, overrides: Sequence[str] | Mapping[str, object]) -> Config:
    """Return a config with keys overridden by `["a.b=c", ...]` or `{"a.b": value}`; texts are parsed by their field.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or an invalid value.
    """
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return _changed(config, overrides)


def override_texts(overrides: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return overrides, see `with_overrides`, as `key=value` texts."""
    if isinstance(overrides, Mapping):
        return [f"{key}={to_text(value)}" for key, value in open_groups(overrides).items()]
    return list(overrides)


def _changed(config: Config, changes: Mapping[str, object], source: str = "") -> Config:
    tree = to_dict(config)
    for key, value in open_groups(changes, source).items():
        parent, _, option = key.rpartition(".")
        if parent in _MAPPINGS:
            key, value = parent, {**as_mapping(value_of(tree, parent)), option: value}
        _check_known(key, source)
        if key in _GROUPS:
            raise ValueError(f"{key}: {shown(value)}: is a group of keys: set one of them, as {key}.KEY=VALUE")
        group, _, name = key.rpartition(".")
        place = tree[group] if group else tree
        place[name] = None if key in _OPTIONAL and is_null(value) else value
    return _build(tree)


def open_groups(tree: Mapping[str, object], source: str = "") -> Tree:
    """Flatten groups of keys, `backbone: {width: 2}`, to dotted keys.

    Raises:
        ValueError: a key is given twice, dotted and in its group.
    """
    opened: Tree = {}
    for group, value in tree.items():
        inner = value if group in _GROUPS and isinstance(value, Mapping) else None
        for key, part in {group: value}.items() if inner is None else inner.items():
            dotted = f"{key}" if inner is None else f"{group}.{key}"
            if dotted in opened:
                raise ValueError(f"{source and f'{source}: '}{dotted}: is given twice: keep one of them")
            opened[dotted] = part
    return opened


def value_of(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in the result of `to_dict`."""
    for part in key.split("."):
        tree = tree[part]
    return tree


class KeyNotSetError(ValueError):
    """A config key that a verb requires is not set; one line."""

    def __init__(self, key: str, option: str | None = None) -> None:
        super().__init__(f"{key}{f' ({option})' if option else ''}: is not set: {descriptions()[key]}")
        self.key, self.option = key, option

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.option)


def require_keys(config: Config, *keys: str) -> None:
    """Raise KeyNotSetError for the first of the keys that is not set."""
    tree = to_dict(config)
    for key in keys:
        if value_of(tree, key) in (None, []):
            raise KeyNotSetError(key)


def to_dict(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Return a nested dict of YAML types, of the given groups such as TRAINING, or of all."""
    return {k: _plain(v) for k, v in asdict(config).items() if groups is None or k in groups}


def from_dict(tree: Mapping[str, object]) -> Config:
    """Return the config of a nested dict: the inverse of `to_dict`.

    Raises:
        ValueError: an invalid value.
    """
    return _build(dict(tree))


def flat(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Return the values by dotted key, in the order of the tree, of the given groups such as TRAINING, or of all."""
    out: Tree = {}
    for key, value in to_dict(config, groups).items():
        if isinstance(value, dict):
            out.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            out[key] = value
    return out


def dump(config: Config, path: AnyPath, groups: Collection[str] = TRAINING) -> None:
    """Write groups of a config as YAML that `load` reads; credentials are masked and must be given again."""
    write_text(path, yaml.safe_dump(masked(to_dict(config, groups)), sort_keys=False))


@functools.cache
def descriptions() -> dict[str, str]:
    """Return the description of every key: the docstring below its field."""
    texts, found = field_texts(sys.modules[__name__]), dict[str, str]()
    for field in fields(Config):
        if field.name in _GROUPS:
            found |= {f"{field.name}.{name}": text for name, text in texts[type(field.default).__name__].items()}
        else:
            found[field.name] = texts["Config"][field.name]
    return found


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


@functools.cache
def _known() -> tuple[str, ...]:
    return (*flat(Config()), *_GROUPS)


def _check_known(path: str, source: str) -> None:
    known = _known()
    if path in known or path == f"evaluate.{_PROTOCOL}":
        return
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]}?" if near else ": see the keys in rayface/config.py"
    where = f" (in {source})" if source else ""
    raise ValueError(f"{path}: is not a config key{where}{hint}")


def _build(tree: Tree) -> Config:
    if _PROTOCOL in tree.get("evaluate", {}):  # of a run of an older rayface
        evaluate = dict(tree["evaluate"])
        protocol = evaluate.pop(_PROTOCOL)
        named = {} if protocol == "pairs" else {"protocols": [protocol]}
        tree = {**tree, "evaluate": {**evaluate, **named}}
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """Return key, value and rule of the first error of a validation."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part)
    text = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], Mapping) and first["type"] == "value_error":  # a rule of the whole group
        return f"{key}: {text}"
    return f"{key}: {shown(first['input'])}: {text[0].lower()}{text[1:]}"
