"""The one typed config tree: preset, then file, then `key=value`; unknown keys are refused."""

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
from rayface.values import Tree, is_null, optional_fields, parse_override, read_yaml, shown


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """What is read, and what is done to an image before the backbone sees it."""

    train: Paths = ()
    """Dataset directory, or a list of them trained on as one."""
    join: Fixed[Literal["names", "labels", "separate"] | None] = None
    """How a list is one label space, also for --data of other verbs: one name is one person, or one label is, or no
    person is in two directories. None: names where all have them; labels where no label is in two."""
    image_size: Fixed[Annotated[int, Field(ge=16, le=1024)]] = 112
    max_corrupt_fraction: Fraction = 1e-3
    """Share of the samples that may be damaged before a run stops."""
    chunk_images: Fixed[Positive] = 8
    """Neighbours in a shard that are read with one request; raise to 64 on object stores."""
    window_images: Fixed[Positive] = 4096
    """Images shuffled together; a read task decodes one window."""
    readers: Operational[NotNegative] = 0
    """Windows decoded at once; 0: from the free CPUs of the cluster."""
    flip: bool = True
    shift: NotNegative = 0
    """Largest random crop shift, pixels of image_size."""
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    name: Shown[Fixed[str]] = "r50"
    embedding_size: Shown[Fixed[Positive]] = 512
    width: Shown[Fixed[Annotated[float, Field(gt=0)] | None]] = None
    """Multiplies every channel count; None: the backbone's own."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Train through torch.compile; on a CPU it needs a C++ compiler."""
    weights: PathText | None = None
    """Start from these: run directory, model.safetensors, or a published .pt/.pth of the same net."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    name: Shown[Fixed[str]] = "partial_fc"
    margin: Shown[str] = "cosface"
    margin_value: float | None = None
    """The margin m; None: the paper's default."""
    scale: Annotated[float, Field(gt=0)] = 64.0
    conflict_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    margin_options: Options = Field(default_factory=dict)
    """Further arguments of the margin, as {gradient: exact} for arcface or {m1: 1, m2: 0.3, m3: 0.2} for combined."""
    sample_rate: Shown[Annotated[float, Field(gt=0, le=1)]] = 1.0
    center_update: Literal["sparse", "dense"] = "sparse"
    storage_dtype: Literal["fp32", "bf16"] = "fp32"
    compute_dtype: Literal["fp32", "bf16"] = "fp32"
    logit_memory: Bytes = 512 * 2**20
    """Bytes of logits kept at once."""
    host_memory: bool = False
    """Keep the centers in pinned host memory and move only the rows of a step to the GPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimConfig:
    name: Shown[Fixed[Literal["sgd", "adamw"]]] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Largest norm of the backbone's gradient."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleConfig:
    name: str = "polynomial"
    """polynomial, multi_step, cosine, plateau, fastface, constant, or one of a plugin."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Not with plateau and fastface."""
    power: Annotated[float, Field(gt=0)] = 1.0
    milestones: Numbers = ()
    """Epochs after which multi_step multiplies the rate by gamma."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    # From here on: of fastface; plateau takes alpha, tolerance, decay and max_decays.
    detector: Literal["ema", "haar_window"] = "ema"
    alpha: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Rate of a moving mean, a step."""
    beta: Annotated[float, Field(gt=0, le=1)] = 1e-3
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Below it the loss counts as flat. ema: loss a step, None: 5e-5; haar_window: loss, None: 0.06."""
    lambda_total: Annotated[float, Field(gt=0)] | None = None
    """For ema: threshold * total steps, with alpha = beta = alpha_total / total steps; in place of those three."""
    alpha_total: Annotated[float, Field(gt=0)] = 200.0
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of all steps that the loss is flat before the rate is lowered."""
    decay: Annotated[float, Field(gt=1)] = 2.0
    """The rate is divided by it."""
    max_decays: NotNegative = 8
    """Since the start or the last restart."""
    window: Annotated[int, Field(gt=1, multiple_of=2)] = 4000
    """Steps of haar_window."""
    restart_after: Positive | None = None
    """Plateaus in a row after which the rate is multiplied by restart_factor instead; None: never."""
    restart_factor: Annotated[float, Field(gt=1)] = 4.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    epochs: Annotated[float, Field(gt=0)] = 20
    batch_size: Shown[Fixed[Positive]] = 128
    """Global: over all workers."""
    num_workers: Shown[Operational[Workers]] = 1
    """Or [least, most]: the run takes as many as the cluster has room for, and goes on when nodes leave or join."""
    cpus_per_worker: Operational[Positive] = 1
    wait_for_nodes: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds that nodes may take to come before a job is refused (on a cluster, not a local Ray), and that lost ones
    may stay away before it is stopped."""
    device: Operational[Literal["auto", "cpu", "cuda"]] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the backbone. auto: bf16 where the device has fast bf16 products."""
    gradient_compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """Of the backbone's gradients on their way between workers."""
    powersgd_rank: Positive = 1
    """Width of the two matrices that powersgd sends for one; 1 to 4 are usual."""
    powersgd_start: Annotated[int, Field(ge=2)] = 1000
    """Steps with whole gradients before powersgd begins; after a resume or a roll-back anew."""
    static_graph: bool = False
    """Tell DistributedDataParallel that all steps use the same layers in the same order. Not with pieces that are added
    up (max_batch_per_worker, resize=accumulate), nor with backbone.compile."""
    teacher: PathText | None = None
    """Distil from: run directory, model.safetensors, .onnx, or a published .pt/.pth with teacher_backbone."""
    teacher_backbone: str | None = None
    teacher_cache: Operational[PathText | None] = None
    """Folder for the teacher's embeddings of data.train, made once and used by every run; None: embed every view."""
    distillation: Literal["angular", "feature", "center"] = "angular"
    """What a student's embedding is drawn to: the teacher's direction, its very vector, or the direction of the
    teacher's mean embedding of the identity (needs teacher_cache)."""
    distillation_weight: Annotated[float, Field(ge=0)] = 7.0
    """Of the distillation loss; the class layer's has 1."""
    seed: Shown[Fixed[NotNegative]] = 0
    output: Operational[PathText | None] = None
    """Run directory, on a disk that all nodes share; None: the next free runs/NAME-001."""
    checkpoint_every: Operational[NotNegative] = 0
    """Steps; 0: once an epoch."""
    keep_checkpoints: Operational[Positive] = 3
    log_every: Operational[Positive] = 10
    """Steps; a request to stop is looked for as often."""
    max_failures: Operational[NotNegative] = 3
    """How often workers that died, or lost each other, are started again from the last checkpoint."""
    hang_timeout: Operational[Annotated[float, Field(ge=0)]] = 600.0
    """Seconds without progress after which workers are started again, and the one that hangs is named; 0: never."""
    on_nan: Literal["stop", "skip", "lower_lr"] = "stop"
    """A loss or gradient that is not finite: stop; or go back to the last good checkpoint and leave that batch out, or
    go on from there at a lower rate."""
    nan_lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What lower_lr multiplies the rate by, each time."""
    max_rollbacks: NotNegative = 3
    """So often in a run; then it stops."""
    max_batch_per_worker: Annotated[int, Field(ge=2)] | None = None
    """Images that a worker takes at once; a larger part of the global batch is worked through in pieces. Until the step
    the class layer keeps head.logit_memory for each of them."""
    resize: Literal["accumulate", "rescale_lr"] = "accumulate"
    """With pieces: one step for the global batch, whatever the number of workers; or one step for each piece, its
    rate in proportion to its share of the global batch."""
    grace_seconds: Operational[Annotated[float, Field(ge=0)]] = 30.0
    """After Ctrl-C or SIGTERM: what the workers get to save a checkpoint."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Measure verification accuracy on pairs, while training or of a finished model."""

    model: str | None = None
    """Model to evaluate: run directory, model.safetensors, .onnx, or a published .pt/.pth with evaluate.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    out: Operational[PathText | None] = None
    """Directory for evaluation.json and the ROC curve."""
    every: Operational[NotNegative] = 0
    """Steps; 0: before the first and after the last."""
    protocol: str = "pairs"
    """How a model is measured: pairs (10-fold verification), or a protocol of a plugin."""
    pairs: PathText | None = None
    """Pairs of images: a CSV with path_a, path_b, is_same, fold, or LFW's pairs.txt."""
    data: Paths = ()
    """Dataset directory, or several, that hold the images named in pairs."""
    batch_size: Positive = 256
    """Images embedded at once."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SynthConfig:
    """Draw a dataset of people who do not exist."""

    out: Operational[PathText | None] = None
    """Dataset directory to write."""
    identities: Positive = 200
    images_per_identity: Positive = 20
    seed: Seed = 0
    """The same seed draws the same dataset."""
    pairs: NotNegative = 0
    """Number of verification pairs to write into pairs.csv."""
    image_size: Annotated[int, Field(ge=16)] = 112
    """Side of an image, pixels."""
    shard_size: Bytes = 256 * 2**20
    """Largest shard."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvertConfig:
    """Convert images of another format to a dataset of tar shards."""

    source: PathText | None = None
    """What to convert."""
    kind: str | None = None
    """Format of the source: folder (one folder of images for each identity), webdataset (tars of any shape)."""
    options: Options = Field(default_factory=dict)
    """Settings of this kind of source, as {image_size: 224, quality: 90} for folder."""
    out: Operational[PathText | None] = None
    """Dataset directory to write."""
    shard_size: Bytes = 256 * 2**20
    """Largest shard."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the images: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmbedConfig:
    """Embed a dataset with a model."""

    model: str | None = None
    """Run directory, model.safetensors, .onnx, or a published .pt/.pth with embed.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    data: Paths = ()
    """Dataset directory, or several as one, as data.train."""
    out: Operational[PathText | None] = None
    """Folder for the parquet files; run again to resume in it."""
    flip: bool = True
    """Add the embedding of the mirror image."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's products."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Stored as."""
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
    """Folder for the core set, on a disk that all nodes share; run again to resume in it."""
    method: str = "face_nms"
    """Selection method: face_nms, random, herding, diffprob, or one of a plugin."""
    threshold: Cosine | None = None
    """face_nms drops images with a higher cosine to a kept one; of diffprob a probability. Either this or keep."""
    keep: Share | None = None
    """Share of the images to keep; its threshold is searched."""
    min_images: Positive = 1
    """Images to keep of every identity that has them."""
    global_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sparsity among all images in the score of face_nms."""
    seed: Seed = 0
    """Seed of random selection and of the sample that a threshold is searched on."""
    baselines: Names = ()
    """Methods to compare with at the same ratio, beside random: herding, diffprob."""
    head: PathText | None = None
    """Run directory of the embedding model; diffprob uses its class centers."""
    options: Options = Field(default_factory=dict)
    """Further settings of the method, for one of a plugin."""
    write_shards: bool = False
    """Copy the kept samples into shards of their own instead of referring to those of prune.data."""
    block_size: Bytes = 64 * 2**20
    """Embeddings that a task holds."""
    proxy_fraction: Share | None = None
    """Instead of embeddings: train a proxy model on this share of the identities, and embed prune.data with it."""
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
    """Find wrong images and identities in embeddings before they are pruned. None: do not look for them."""

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
    """Cosine above which an identity is one of the test set's."""
    drop: Names = ()
    """What to drop of what is found: outliers, conflicts, bytes."""
    merge: bool = False
    """Give duplicate identities one label, the lowest."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """What is dropped of what is found, identities of the test set included."""
        return (*self.drop, *(("test",) if self.above is not None and "test" not in self.drop else ()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportConfig:
    """Export a model to ONNX."""

    model: str | None = None
    """Run directory, model.safetensors, or a published .pt/.pth with export.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    onnx: Operational[PathText | None] = None
    """File to write; model_card.md is written beside it."""
    external_data: bool = False
    """Write the weights into a file beside it; always above 1.9 GB."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    """The Ray that jobs run on."""

    address: str | None = None
    """Ray cluster; None: RAY_ADDRESS, else a local Ray that ends with the job."""
    debug: bool = False
    """Show the logs of Ray."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    enabled: bool = True
    uri: DatabaseUri | None = None
    """MLflow: a server, or sqlite:///FILE. None: MLFLOW_TRACKING_URI, else mlflow.db beside the runs."""
    experiment: str = "rayface"
    timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that the end of a run waits for MLflow; what is not delivered then stays in the spool."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    name: Shown[Operational[Annotated[str, Field(min_length=1)]]] = "run"
    """Starts the names of run directories and of MLflow runs."""
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
    embed: EmbedConfig = EmbedConfig()
    clean: CleanConfig = CleanConfig()
    prune: PruneConfig = PruneConfig()
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
_MAPPINGS = {"convert.options", "head.margin_options", "prune.options"}  # keys that hold keys of their own


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
    """A config with some keys changed, by `["a.b=c", ...]` or `{"a.b": value}`; a text is read as its field has it.

    Raises:
        ValueError: an unknown key (the nearest one is named) or a value that breaks its rule.
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
    """Groups of keys, `backbone: {width: 2}`, as dotted keys.

    Raises:
        ValueError: a key is given twice, by itself and in its group.
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
    """What a config as `to_dict` has it holds under a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def require_keys(config: Config, *keys: str) -> None:
    """Raise ValueError, one line, for the first of some keys that is not set."""
    tree = to_dict(config)
    for key in keys:
        if value_of(tree, key) in (None, []):
            raise ValueError(f"{key}: is not set: {descriptions()[key]}")


def to_dict(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Plain nested dict of YAML's types, of some fields of Config, such as TRAINING, or of all."""
    return {k: _plain(v) for k, v in asdict(config).items() if groups is None or k in groups}


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ValueError: a value that breaks its rule.
    """
    return _build(dict(tree))


def flat(config: Config, groups: Collection[str] | None = None) -> Tree:
    """Dotted key to value, in the order of the tree, of some fields of Config, such as TRAINING, or of all."""
    out: Tree = {}
    for key, value in to_dict(config, groups).items():
        if isinstance(value, dict):
            out.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            out[key] = value
    return out


def dump(config: Config, path: Path, groups: Collection[str] = TRAINING) -> None:
    """Write some fields of Config as YAML that `load` reads; credentials are masked and must be given again."""
    write_text(path, yaml.safe_dump(masked(to_dict(config, groups)), sort_keys=False))


@functools.cache
def descriptions() -> dict[str, str]:
    """What every key of the tree is, from the docstring below its field."""
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


def _check_known(path: str, source: str) -> None:
    known = [*flat(Config()), *_GROUPS]
    if path in known:
        return
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]}?" if near else ": see the keys in rayface/config.py"
    where = f" (in {source})" if source else ""
    raise ValueError(f"{path}: is not a config key{where}{hint}")


def _build(tree: Tree) -> Config:
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """Key, value and rule of what a validation found first."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part)
    text = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], Mapping) and first["type"] == "value_error":  # a rule of the whole group
        return f"{key}: {text}"
    return f"{key}: {shown(first['input'])}: {text[0].lower()}{text[1:]}"
