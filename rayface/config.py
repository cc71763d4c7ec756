"""Typed tree of settings: preset, then file, then `key=value`; unknown keys are refused."""

import ast
import difflib
import functools
import inspect
import itertools
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
    Paths,
    PathText,
    Positive,
    Seed,
    Share,
    Shown,
    Workers,
    as_mapping,
    marked,
)
from rayface.credentials import masked
from rayface.files import write_text
from rayface.storage import AnyPath
from rayface.values import Tree, is_null, optional_fields, parse_override, read_yaml, shown


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Training data, and augmentation of its images."""

    train: Paths = ()
    """Dataset directory, or several that are trained on as one."""
    join: Fixed[Literal["names", "labels", "separate"] | None] = None
    """How several directories share labels: by identity name (names), by label (labels), or not at all (separate).
    None: names if all directories have them, at most one of them only numbers; labels if no label is in two; else
    refused. Also for the data of other verbs."""
    weights: Fixed[Numbers] = ()
    """How often an epoch holds the images of each directory of train: [1, 0.3] all of the first and 30% of the second,
    others in every epoch; 2 each twice. Empty: all once."""
    image_size: Fixed[Annotated[int, Field(ge=16, le=1024)]] = 112
    """Side of an image, pixels; other sizes are resized."""
    max_corrupt_fraction: Fraction = 1e-3
    """Largest share of corrupt samples; above it a job stops."""
    chunk_images: Fixed[Positive] = 8
    """Neighbouring images of a shard that are read by one request. Object stores may need 64."""
    window_images: Fixed[Positive] = 4096
    """Images that are shuffled together; one read task decodes a window."""
    readers: Operational[NotNegative] = 0
    """Number of windows decoded concurrently. 0: by the free CPUs of the cluster."""
    flip: bool = True
    """Mirror half of the images at random."""
    shift: NotNegative = 0
    """Largest random shift of the crop, pixels."""
    brightness: Fraction = 0.0
    """Largest random change of brightness, as a share."""
    contrast: Fraction = 0.0
    """Largest random change of contrast, as a share."""
    saturation: Fraction = 0.0
    """Largest random change of saturation, as a share."""
    jpeg: Fraction = 0.0
    """Share of images that are encoded as JPEG of a random quality, 20 to 90."""
    crop: Fraction = 0.0
    """Share of images of which a random crop stays, 20 to 100% of the area; the rest is black."""
    low_resolution: Fraction = 0.0
    """Share of images that are scaled down, to 20 to 100% of the side, and up again."""
    blur: Fraction = 0.0
    """Share of images with a Gaussian blur, 0.3 to 2 pixels."""
    grey: Fraction = 0.0
    """Share of images without colours."""
    erase: Fraction = 0.0
    """Share of images with an erased rectangle, 2 to 33% of the area."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """The network that embeds images."""

    name: Shown[Fixed[str]] = "r50"
    """Name of the backbone, as `rayface backbones` lists them, or one of a plugin."""
    embedding_size: Shown[Fixed[Positive]] = 512
    """Length of an embedding, D."""
    width: Shown[Fixed[Annotated[float, Field(gt=0)] | None]] = None
    """Factor of all channel counts. None: the backbone's own."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate in front of the embedding."""
    checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Train through torch.compile, which needs a C++ compiler on CPUs."""
    weights: PathText | None = None
    """Initial weights: run directory, model.safetensors, or a published .pt/.pth of the same backbone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The head: class centers and margin softmax over them."""

    name: Shown[Fixed[str]] = "partial_fc"
    """Name of the head: partial_fc (class centers of all identities), dcq (a queue of keys), f2c (a pool of recent
    identities), or one of a plugin."""
    options: Fixed[Options] = Field(default_factory=dict)
    """Settings of the head of its own: {queue_size: 8192, momentum: 0.999} of dcq, {pool_size: 8192, momentum: 0.99} of
    f2c."""
    margin: Shown[str] = "cosface"
    """Margin of the softmax: cosface, arcface, combined, adaface, elasticface, magface, curricularface, or one of a
    plugin."""
    margin_value: float | None = None
    """Margin m. None: the paper's default."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Scale s of the logits. None: that of the head's paper, 64 for partial_fc, 50 for dcq, 32 for f2c."""
    conflict_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Cosine above which a negative class center is excluded from the softmax (interclass filtering). None: never."""
    margin_options: Options = Field(default_factory=dict)
    """Further arguments of the margin, for example {gradient: exact} of arcface or {m1: 1, m2: 0.3, m3: 0.2} of
    combined."""
    sample_rate: Shown[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """Share of the negative classes that are sampled in a step."""
    center_update: Literal["sparse", "dense"] = "sparse"
    """Move only the sampled class centers (sparse) or all of them (dense)."""
    storage_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which class centers are stored."""
    compute_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the products with class centers."""
    kernel: Literal["chunked", "fused"] = "chunked"
    """How logits are computed: by torch in chunks (chunked), or by Triton kernels that keep none (fused). fused needs a
    CUDA GPU and a margin that changes only the target's logit. It has not been run on a GPU yet."""
    logit_memory: Bytes = 512 * 2**20
    """Memory of the logits that are computed at once."""
    host_memory: bool = False
    """Keep class centers in pinned host memory and move only the rows of a step to the GPU."""


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
    """Largest norm of the backbone's gradient. None: do not clip."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleConfig:
    """The learning-rate schedule."""

    name: str = "polynomial"
    """Schedule: polynomial, multi_step, cosine, constant, plateau, fastface, or one of a plugin."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up; not with plateau and fastface."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Power of polynomial."""
    milestones: Numbers = ()
    """Epochs after which multi_step multiplies the rate by gamma."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of multi_step."""
    detector: Literal["ema", "haar_window"] = "ema"
    """Plateau detector of fastface: ema (slope of smoothed losses) or haar_window."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Smoothing factor of the loss per step, of fastface and plateau."""
    beta: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Smoothing factor of the slope per step, of fastface."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Value of the detector below which the loss counts as flat. None: 5e-5 (loss per step) for ema, 0.06 for
    haar_window."""
    lambda_total: Annotated[float, Field(gt=0)] | None = None
    """Instead of threshold, alpha and beta of ema: threshold * total steps, with alpha = beta = alpha_total / total
    steps."""
    alpha_total: Annotated[float, Field(gt=0)] = 200.0
    """Smoothing factor * total steps, used with lambda_total."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of all steps for which the loss must be flat before the rate is lowered, of fastface and plateau."""
    decay: Annotated[float, Field(gt=1)] = 2.0
    """Divisor of the rate at each plateau, of fastface and plateau."""
    max_decays: NotNegative = 8
    """Largest number of decays since the start or the last restart."""
    window: Annotated[int, Field(gt=1, multiple_of=2)] = 4000
    """Steps in the window of haar_window, m."""
    restart_after: Positive | None = None
    """Number of successive plateaus after which the rate is multiplied by restart_factor instead. None: never."""
    restart_factor: Annotated[float, Field(gt=1)] = 4.0
    """Factor of a restart."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """The training run."""

    epochs: Annotated[float, Field(gt=0)] = 20
    """Passes over the training data."""
    batch_size: Shown[Fixed[Positive]] = 128
    """Global batch size, over all workers."""
    num_workers: Shown[Operational[Workers]] = 1
    """Number of workers, or [least, most]: as many as the cluster has room for, changed when nodes leave or join."""
    cpus_per_worker: Operational[Positive] = 1
    """CPUs that a worker reserves."""
    wait_for_nodes: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds to wait for missing nodes of a cluster, before a job is refused and before a run without enough nodes is
    stopped."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device of the workers. auto: a GPU if the cluster has one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the backbone. auto: bf16 if the device has fast bf16 products."""
    gradient_compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """Compression of the backbone's gradients between workers."""
    powersgd_rank: Positive = 1
    """Columns of the two matrices that powersgd sends for a gradient; usually 1 to 4."""
    powersgd_start: Annotated[int, Field(ge=2)] = 1000
    """Steps with whole gradients before powersgd starts, after a resume or roll-back again."""
    static_graph: bool = False
    """Tell DistributedDataParallel that all steps use the same layers in the same order. Not with gradient accumulation
    (max_batch_per_worker, resize=accumulate) or backbone.compile."""
    teacher: PathText | None = None
    """Distil from this model: run directory, model.safetensors, .onnx, or a published .pt/.pth with
    teacher_backbone."""
    teacher_backbone: str | None = None
    """Backbone of a published teacher, for example r50."""
    teacher_cache: Operational[DiskPath | None] = None
    """Folder for the teacher's embeddings of data.train, computed once for all runs. None: embed every augmented image
    in every step."""
    distillation: Literal["angular", "feature", "center"] = "angular"
    """Target of a student's embedding: direction of the teacher's embedding (angular), the embedding itself (feature),
    or direction of the teacher's mean embedding of the identity (center; needs teacher_cache)."""
    distillation_weight: Annotated[float, Field(ge=0)] = 7.0
    """Weight of the distillation loss; the head's loss has weight 1."""
    seed: Shown[Fixed[NotNegative]] = 0
    """Seed of initial weights, order of samples, augmentation, dropout and sampled classes."""
    ema: Fixed[Annotated[float, Field(gt=0, lt=1)] | None] = None
    """Evaluate and export a running average of the backbone's weights with this decay, for example 0.9999; in the first
    steps the decay is less. None: no average."""
    output: Operational[PathText | None] = None
    """Run directory, on a disk that all nodes share, or a URI. None: the next free runs/NAME-001."""
    checkpoint_every: Operational[NotNegative] = 0
    """Steps between checkpoints. 0: one per epoch."""
    keep_checkpoints: Operational[Positive] = 3
    """Number of newest checkpoints to keep, beside the best one."""
    mirror_every: Operational[NotNegative] = 100
    """Steps between copies of the state in host memory outside the workers, from which workers that died restart.
    0: restart from checkpoints only."""
    log_every: Operational[Positive] = 10
    """Steps between logged metrics, and between checks for a stop request."""
    max_failures: Operational[NotNegative] = 3
    """Maximum number of restarts from the last checkpoint or mirrored state after workers died or lost contact."""
    hang_timeout: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds without progress after which the slowest rank is reported and workers restart. 0: never."""
    on_nan: Literal["stop", "skip", "lower_lr"] = "stop"
    """Reaction to a non-finite loss or gradient: stop, roll back and skip that batch (skip), or roll back and continue
    at a lower rate (lower_lr)."""
    nan_lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of the rate at each lower_lr."""
    max_rollbacks: NotNegative = 3
    """Maximum number of roll-backs per run; after that, a non-finite step stops it."""
    max_batch_per_worker: Annotated[int, Field(ge=2)] | None = None
    """Maximum images per micro-batch of a worker; a larger part of the batch is split into micro-batches, whose logits
    take head.logit_memory each until the step."""
    resize: Literal["accumulate", "rescale_lr"] = "accumulate"
    """With micro-batches: one step per global batch (accumulate), or one step per micro-batch with the rate scaled by
    its share of the batch (rescale_lr)."""
    grace_seconds: Operational[Annotated[float, Field(ge=0)]] = 30.0
    """Seconds that workers get to save a checkpoint after Ctrl-C or SIGTERM."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Measure a model by one or several protocols, during training or when it is finished."""

    model: str | None = None
    """Model to evaluate: run directory, model.safetensors, .onnx, or a published .pt/.pth with evaluate.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    embeddings: PathText | None = None
    """Embeddings of the images, as of `rayface embed`, instead of a model."""
    out: Operational[PathText | None] = None
    """Directory for evaluation.json, report.html and the plots."""
    every: Operational[NotNegative] = 0
    """Steps between validations during training. 0: only before the first and after the last step."""
    protocols: Names = ()
    """How a model is measured: pairs or bin (10-fold verification), templates (1:1 and 1:N), all_vs_all, or a protocol
    of a plugin. The first one's main figure selects the best checkpoint. None: every built-in protocol whose inputs are
    set."""
    pairs: PathText | None = None
    """Pairs of images: LFW's pairs.txt, or a CSV with the columns path_a, path_b (names of images in evaluate.data, as
    000123.jpg), is_same (1 or 0) and fold (0 to 9); `rayface synth --pairs` and `convert --from bin` write one."""
    data: Paths = ()
    """Dataset directory, or several, that hold the images named in pairs."""
    bin: Paths = ()
    """InsightFace's .bin file of pairs and their images, or several."""
    templates: PathText | None = None
    """Folder of a benchmark with lists of templates, as of `rayface benchmark make`."""
    ijb: DiskPath | None = None
    """Folder of IJB-B or IJB-C, with meta and loose_crop."""
    target: Literal["IJBB", "IJBC"] = "IJBC"
    """Which of the two ijb is."""
    keep_norm: bool = True
    """Weight the images of a template by the length of their embeddings."""
    face_scores: bool = True
    """Weight the images of a template by the detector's scores, which IJB has."""
    all_vs_all: Paths = ()
    """Dataset directory, or several, whose images are all compared with each other."""
    group_by: Names = ()
    """Columns of groups, such as race, for rates inside each group of all_vs_all."""
    groups: PathText | None = None
    """Table of the groups, CSV or parquet, with a column key, identity or label. None: the dataset's
    identities.parquet."""
    bootstrap: NotNegative = 1000
    """Replicates of the bootstrap over identities, for the intervals. 0: no intervals."""
    leak_check: Paths = ()
    """Training set, or several, to search for the test images by name and by bytes."""
    leak_embeddings: PathText | None = None
    """Embeddings of leak_check by the same model, to search by embedding too."""
    leak_above: Cosine = 0.9
    """Cosine above which a training image counts as the same image."""
    write_card: bool = False
    """Replace the metrics and thresholds in the model's model.json and model_card.md."""
    options: Options = Field(default_factory=dict)
    """Settings of a plugin's protocol."""
    flip: bool = True
    """Add the embedding of the mirror image."""
    batch_size: Positive = 256
    """Images per batch."""
    cache: Operational[DiskPath | None] = None
    """Directory for the embeddings of datasets, which later evaluations of the same model reuse; on a cluster, one that
    all nodes share. None: the user's cache directory."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SynthConfig:
    """Draw a synthetic dataset of no real persons."""

    out: Operational[PathText | None] = None
    """Dataset directory to write."""
    identities: Positive = 200
    """Number of identities."""
    images_per_identity: Positive = 20
    """Images per identity."""
    seed: Seed = 0
    """Random seed; the same seed gives the same dataset."""
    pairs: NotNegative = 0
    """Number of verification pairs to write into pairs.csv."""
    image_size: Annotated[int, Field(ge=16)] = 112
    """Side of an image, pixels."""
    shard_size: Bytes = 256 * 2**20
    """Largest shard."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvertConfig:
    """Convert images of another format to a dataset of tar shards."""

    source: Paths = ()
    """Path of the images to convert, or several as one dataset; data.join says how their labels are joined."""
    kind: Names = ()
    """Format of the source: folder (one per identity), rec (MXNet's RecordIO), webface-zip, parquet, hub, lmdb,
    webdataset, list, bin or cfp; see docs/data.md. One for each of several sources, or one for all."""
    to: str | None = None
    """Write this format instead of a dataset: bin (of DIR/pairs.csv), folder, hub, parquet. The source is a dataset, or
    of its format."""
    options: Options = Field(default_factory=dict)
    """Settings of the format, for example {image_size: 224, quality: 90} for folder."""
    out: Operational[PathText | None] = None
    """Dataset directory to write, on a disk that all nodes share, or a URI; run again to resume in it."""
    shard_size: Bytes = 256 * 2**20
    """Largest shard."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the images: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Encode every image as JPEG of this quality. None: keep the bytes of images that are not resized."""
    min_images: Positive = 1
    """Leave out identities with fewer readable images."""
    limit: Positive | None = None
    """Convert only the first images of the source, for a trial. None: all."""
    max_corrupt_fraction: Operational[Fraction] = 1.0
    """Largest share of images that cannot be read; above it the job stops. Every one is named or counted."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AlignConfig:
    """Find and align the faces of photographs, and write them as a dataset of tar shards."""

    source: Paths = ()
    """Path of the photographs, or several as one dataset; data.join says how their labels are joined."""
    kind: Names = ("folder",)
    """Format of the photographs, as convert.kind."""
    out: Operational[PathText | None] = None
    """Dataset directory to write, on a disk that all nodes share, or a URI; run again to resume in it."""
    detector: PathText | None = None
    """File of OpenCV's face detector YuNet, face_detection_yunet_*.onnx of the OpenCV Zoo."""
    min_score: Fraction = 0.6
    """Least score of a face."""
    image_size: Annotated[int, Field(ge=16)] = 112
    """Side of an aligned face, pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the aligned faces."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the faces: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    shard_size: Bytes = 256 * 2**20
    """Largest shard."""
    min_images: Positive = 1
    """Leave out identities with fewer faces."""
    limit: Positive | None = None
    """Align only the first photographs of the source, for a trial. None: all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmbedConfig:
    """Embed a dataset with a model."""

    model: str | None = None
    """Run directory, model.safetensors, .onnx, or a published .pt/.pth with embed.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    data: Paths = ()
    """Dataset directory, or several as one; see data.train."""
    out: Operational[PathText | None] = None
    """Folder for the parquet files; run again to resume in it."""
    flip: bool = True
    """Add the embedding of the mirror image."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's products."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Type of the stored embeddings."""
    workers: Operational[Positive | None] = None
    """Number of actors; None: one per GPU, else one per CPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruneConfig:
    """Select a core set of embedded images."""

    embeddings: PathText | None = None
    """Folder of parquet files with key, label, embedding, as `rayface embed` writes them."""
    data: Paths = ()
    """Dataset that was embedded, or several as one; prune then writes a dataset of the core set."""
    out: Operational[PathText | None] = None
    """Folder for the core set, on a disk that all nodes share, or a URI; run again to resume in it."""
    method: str = "face_nms"
    """Selection method: face_nms, random, herding, diffprob, or one of a plugin."""
    threshold: Cosine | None = None
    """Cosine to a kept image above which face_nms drops an image; for diffprob a probability. Either this or keep."""
    keep: Share | None = None
    """Share of the images to keep; its threshold is searched."""
    min_images: Positive = 1
    """Minimum number of images to keep of every identity that has them."""
    global_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sparsity among all images in the score of face_nms."""
    seed: Seed = 0
    """Seed of random selection and of the sample on which a threshold is searched."""
    baselines: Names = ()
    """Methods to compare with at the same ratio, beside random: herding, diffprob."""
    head: PathText | None = None
    """Run directory of the embedding model; diffprob uses its class centers."""
    options: Options = Field(default_factory=dict)
    """Further settings of the method, for a plugin's."""
    write_shards: bool = False
    """Copy the kept samples into shards of their own instead of referring to those of prune.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings in a task."""
    proxy_fraction: Share | None = None
    """Instead of embeddings: train a proxy model on this share of the identities and embed prune.data with it."""
    proxy_preset: str = "mini"
    """Preset of the proxy; config keys of training change it."""

    @model_validator(mode="after")
    def _check(self) -> "PruneConfig":
        if self.threshold is not None and self.keep is not None:
            raise ValueError("threshold, keep: both are given: must be one of the two, for example prune.keep=0.6")
        if self.embeddings is not None and self.proxy_fraction is not None:
            raise ValueError("embeddings, proxy_fraction: both are given: must be one of the two")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanConfig:
    """Find mislabelled images and duplicate identities in embeddings before pruning. None: no search."""

    outliers: Cosine | None = None
    """Find images with a lower cosine to the mean of their identity."""
    duplicates: Cosine | None = None
    """Find identities whose centers have a higher cosine."""
    conflicts: Cosine | None = None
    """Find images of two identities with a higher cosine."""
    bytes: bool = False
    """Find equal files; reads prune.data."""
    exclude: PathText | None = None
    """Embeddings of a test set; its identities are dropped."""
    above: Cosine | None = None
    """Cosine above which an identity counts as one of the test set."""
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
    """Folder of parquet files with key, label, embedding, as `rayface embed` writes them."""
    data: Paths = ()
    """Dataset that was embedded, or several as one; cluster then writes a dataset labelled by clusters."""
    out: Operational[PathText | None] = None
    """Folder for the clusters, on a disk that all nodes share, or a URI; run again to resume in it."""
    method: Literal["cohesive", "average", "components", "density", "ogmc"] = "cohesive"
    """Clustering method; ogmc is online, in the order of the embeddings."""
    threshold: Cosine | None = None
    """Cosine from which two images are one person; None: estimated from the embeddings."""
    calibrate: PathText | None = None
    """Labelled embeddings of the same model, whose best threshold is used; instead of threshold."""
    assign: PathText | None = None
    """Labelled embeddings of known identities: images are assigned to these, and only the others clustered."""
    far: Fraction = 1e-3
    """Share of the images of strangers that may be assigned to a known identity."""
    stream: bool = False
    """Cluster only the files that are new in the folder since the last run into clustering.out; method ogmc."""
    within: bool = False
    """Split labelled identities only: images of two labels never share a cluster; small parts become noise."""
    merge: bool = False
    """With within: also merge the parts of several labels that are one person."""
    neighbours: Positive = 40
    """Nearest neighbours of an image that are candidates for its cluster."""
    search: Literal["auto", "exact", "lists"] = "auto"
    """Search of neighbours: all images, or those in the lists nearest to each; auto: exact up to 200,000 images."""
    probes: Positive = 32
    """Lists in which the neighbours of an image are searched; about 4 * sqrt(N) in all."""
    min_images: Positive = 2
    """Clusters of fewer images are noise: cluster -1, and in no dataset."""
    write_shards: bool = False
    """Copy the clustered samples into shards of their own instead of referring to those of clustering.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings in a task."""

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
    """Export a model to ONNX, or as a folder of the Hugging Face Hub."""

    model: str | None = None
    """Run directory, model.safetensors, or a published .pt/.pth with export.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    onnx: Operational[PathText | None] = None
    """File to write; model_card.md is written beside it."""
    hub: Operational[PathText | None] = None
    """Folder to write for the Hugging Face Hub: model.safetensors, config.json and README.md."""
    external_data: bool = False
    """Write the weights into a file beside it; always above 1.9 GB."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    """Ray session of the jobs."""

    address: str | None = None
    """Address of the Ray cluster; None: RAY_ADDRESS, else a local Ray that ends with the job."""
    debug: bool = False
    """Show the logs of Ray."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """Tracking in MLflow."""

    enabled: bool = True
    """Send the run to MLflow."""
    uri: DatabaseUri | None = None
    """MLflow server, or sqlite:///FILE. None: MLFLOW_TRACKING_URI, else mlflow.db of the project."""
    experiment: str = "rayface"
    """Name of the MLflow experiment."""
    tensorboard: bool = False
    """Also write an event file for TensorBoard, into tensorboard/ of the output."""
    prometheus: bool = False
    """Also export the newest metrics through Ray, for Prometheus; deploy/grafana-dashboard.json shows them."""
    wandb: bool = False
    """Also write an offline run for Weights & Biases, into wandb/ of the output; `wandb sync` uploads it."""
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
    preset: str | None = None, file: Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Resolve preset, then YAML file, then overrides.

    Raises:
        ValueError: one line with the key, its value, the rule and the remedy.
    """
    from rayface.presets import preset_values

    config = _build(preset_values(preset) if preset else {})
    if file is not None:
        config = _changed(config, read_yaml(file), source=str(file))
    return with_overrides(config, overrides)


def with_overrides(config: Config, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
    """Return a config with keys overridden by `["a.b=c", ...]` or `{"a.b": value}`; texts are parsed by their field.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or an invalid value.
    """
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return _changed(config, overrides)


def _changed(config: Config, changes: Mapping[str, Any], source: str = "") -> Config:
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


def open_groups(tree: Mapping[str, Any], source: str = "") -> Tree:
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


def from_dict(tree: Mapping[str, Any]) -> Config:
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
    found: dict[str, str] = {}
    module = ast.parse(inspect.getsource(sys.modules[__name__]))
    bodies = {node.name: node.body for node in module.body if isinstance(node, ast.ClassDef)}
    for field in fields(Config):
        group = type(field.default).__name__ if field.name in _GROUPS else "Config"
        prefix = f"{field.name}." if field.name in _GROUPS else ""
        for node, after in itertools.pairwise([*bodies[group], ast.Pass()]):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if not prefix and node.target.id != field.name:
                continue
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[f"{prefix}{node.target.id}"] = " ".join(str(text).split())
    return found


def _plain(value: Any) -> Any:
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
