"""The one typed config tree: preset, then file, then `key=value`; unknown keys are refused."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from rayface.credentials import masked
from rayface.files import write_text
from rayface.values import (
    guess,
    is_null,
    optional_fields,
    parse_list,
    parse_mapping,
    parse_override,
    read_yaml,
    shown,
)

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def parse_bytes(text: str) -> int:
    """Bytes from text as 256MB, 1GB or 1000000 (powers of 1024).

    Raises:
        ValueError: anything else.
    """
    number = text.strip().upper().removesuffix("B")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(number[-1:], 1)
    digits = number.rstrip("KMGT")
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"size {text!r}: must be a number of bytes above 0, for example 256MB")
    return int(digits) * factor


def parse_paths(field: str, text: str) -> tuple[str, ...]:
    """One path, as it stands there, or several written as '[a,b]', as data.train takes them.

    Raises:
        ValueError: brackets that hold no list of paths.
    """
    try:
        return _paths(text)
    except ValueError as error:
        raise ValueError(f"{field}: {text!r}: {error}") from error


def _paths(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value and not value.startswith("["):
        return (value,)
    try:
        return tuple(parse_list(value))
    except ValueError as error:
        raise ValueError(
            "must be a directory, or several as '[a,b]'; one whose own name begins with a bracket as './[a'"
        ) from error


def _absolute(path: str) -> str:
    """A path as every process finds it: workers run in other directories. URIs stay."""
    from rayface.storage import normalise  # pyarrow takes its time to import

    if not path:
        raise ValueError("must be a path")
    return normalise(path)


def _absolute_database(uri: str) -> str:
    """A sqlite file as every process finds it; other URIs stay."""
    scheme = "sqlite:///"
    if not uri.startswith(scheme) or uri.startswith((f"{scheme}:", f"{scheme}file:")):
        return uri
    return scheme + os.path.abspath(uri.removeprefix(scheme))


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[Positive, BeforeValidator(lambda v: parse_bytes(v) if isinstance(v, str) else v)]


def _list(value: Any) -> Any:
    return parse_list(value) if isinstance(value, str) and value.startswith("[") else value


def _workers(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the least and the most."""
    value = _list(value)
    bounds = tuple(value) if isinstance(value, list | tuple) else (value, value)
    bounds = tuple(guess(bound) if isinstance(bound, str) else bound for bound in bounds)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in bounds)
    if len(bounds) != 2 or not whole or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError("must be a number of workers above 0, or [least, most], for example [1, 3]")
    return (bounds[0], bounds[1]) if isinstance(value, list | tuple) else bounds[0]


def _mapping(value: Any) -> Any:
    return parse_mapping(value) if isinstance(value, str) else value


def _guessed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: guess(value) if isinstance(value, str) else value for key, value in values.items()}


Workers = Annotated[int | tuple[int, int], PlainValidator(_workers)]
PathText = Annotated[str, AfterValidator(_absolute)]
"""A path or URI; relative ones are of the current directory where they enter, and absolute from there on."""
Paths = Annotated[tuple[PathText, ...], BeforeValidator(_paths)]
DatabaseUri = Annotated[str, AfterValidator(_absolute_database)]
Numbers = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_list)]
Options = Annotated[dict[str, Any], BeforeValidator(_mapping), AfterValidator(_guessed)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """What is read, and what is done to an image before the backbone sees it."""

    train: Paths = ()
    """Dataset directory, or a list of them trained on as one."""
    join: Literal["names", "labels", "separate"] | None = None
    """How a list is one label space, also for --data of other verbs: one name is one person, or one label is, or no
    person is in two directories. None: names where all have them; labels where no label is in two."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 112
    max_corrupt_fraction: Fraction = 1e-3
    """Share of the samples that may be damaged before a run stops."""
    chunk_images: Positive = 8
    """Neighbours in a shard that are read with one request; raise to 64 on object stores."""
    window_images: Positive = 4096
    """Images shuffled together; a read task decodes one window."""
    readers: NotNegative = 0
    """Windows decoded at once; 0: from the free CPUs of the cluster."""
    flip: bool = True
    shift: NotNegative = 0
    """Largest random crop shift, pixels of image_size."""
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BackboneConfig:
    name: str = "r50"
    embedding_size: Positive = 512
    width: Annotated[float, Field(gt=0)] | None = None
    """Multiplies every channel count; None: the backbone's own."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Train through torch.compile; on a CPU it needs a C++ compiler."""
    weights: PathText | None = None
    """Start from these: run directory, model.safetensors, or a published .pt/.pth of the same net."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HeadConfig:
    name: str = "partial_fc"
    margin: str = "cosface"
    margin_value: float | None = None
    """The margin m; None: the paper's default."""
    scale: Annotated[float, Field(gt=0)] = 64.0
    conflict_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    margin_options: Options = Field(default_factory=dict)
    """Further arguments of the margin, as {gradient: exact} for arcface or {m1: 1, m2: 0.3, m3: 0.2} for combined."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    center_update: Literal["sparse", "dense"] = "sparse"
    storage_dtype: Literal["fp32", "bf16"] = "fp32"
    compute_dtype: Literal["fp32", "bf16"] = "fp32"
    logit_memory: Bytes = 512 * 2**20
    """Bytes of logits kept at once."""
    host_memory: bool = False
    """Keep the centers in pinned host memory and move only the rows of a step to the GPU."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimConfig:
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    """Largest norm of the backbone's gradient."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    epochs: Annotated[float, Field(gt=0)] = 20
    batch_size: Positive = 128
    """Global: over all workers."""
    num_workers: Workers = 1
    """Or [least, most]: the run takes as many as the cluster has room for, and goes on when nodes leave or join."""
    cpus_per_worker: Positive = 1
    wait_for_nodes: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that nodes may take to come before a job is refused (on a cluster, not a local Ray), and that lost ones
    may stay away before it is stopped."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
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
    teacher_cache: PathText | None = None
    """Folder for the teacher's embeddings of data.train, made once and used by every run; None: embed every view."""
    distillation: Literal["angular", "feature", "center"] = "angular"
    """What a student's embedding is drawn to: the teacher's direction, its very vector, or the direction of the
    teacher's mean embedding of the identity (needs teacher_cache)."""
    distillation_weight: Annotated[float, Field(ge=0)] = 7.0
    """Of the distillation loss; the class layer's has 1."""
    seed: NotNegative = 0
    output: PathText | None = None
    """Run directory, on a disk that all nodes share; None: the next free runs/NAME-001."""
    checkpoint_every: NotNegative = 0
    """Steps; 0: once an epoch."""
    keep_checkpoints: Positive = 3
    log_every: Positive = 10
    """Steps; a request to stop is looked for as often."""
    max_failures: NotNegative = 3
    """How often workers that died, or lost each other, are started again from the last checkpoint."""
    hang_timeout: Annotated[float, Field(ge=0)] = 600.0
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
    grace_seconds: Annotated[float, Field(ge=0)] = 30.0
    """After Ctrl-C or SIGTERM: what the workers get to save a checkpoint."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateConfig:
    every: NotNegative = 0
    """Steps; 0: before the first and after the last."""
    pairs: PathText | None = None
    data: PathText | None = None
    """Dataset directory that holds the members named in pairs."""
    batch_size: Positive = 256


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrackingConfig:
    enabled: bool = True
    uri: DatabaseUri | None = None
    """MLflow: a server, or sqlite:///FILE. None: MLFLOW_TRACKING_URI, else mlflow.db beside the runs."""
    experiment: str = "rayface"
    timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that the end of a run waits for MLflow; what is not delivered then stays in the spool."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    name: Annotated[str, Field(min_length=1)] = "run"
    """Starts the names of run directories and of MLflow runs."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()


_ADAPTER = TypeAdapter(Config)
_GROUPS = {f.name for f in fields(Config) if is_dataclass(f.default)}
_OPTIONAL = {f"{f.name}.{key}" for f in fields(Config) if f.name in _GROUPS for key in optional_fields(type(f.default))}
_MAPPINGS = {"head.margin_options"}  # keys that hold keys of their own


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
            key, value = parent, {**_mapping(value_of(tree, parent)), option: value}
        _check_known(key, source)
        if key in _GROUPS:
            raise ValueError(f"{key}: {shown(value)}: is a group of keys: set one of them, as {key}.KEY=VALUE")
        group, _, name = key.rpartition(".")
        place = tree[group] if group else tree
        place[name] = None if key in _OPTIONAL and is_null(value) else value
    return _build(tree)


def open_groups(tree: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Groups of keys, `backbone: {width: 2}`, as dotted keys.

    Raises:
        ValueError: a key is given twice, by itself and in its group.
    """
    opened: dict[str, Any] = {}
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


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict of YAML's types."""
    return {k: _plain(v) for k, v in asdict(config).items()}


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ValueError: a value that breaks its rule.
    """
    return _build(dict(tree))


def flat(config: Config) -> dict[str, Any]:
    """Dotted key to value, in the order of the tree."""
    out: dict[str, Any] = {}
    for key, value in to_dict(config).items():
        if isinstance(value, dict):
            out.update({f"{key}.{k}": v for k, v in value.items()})
        else:
            out[key] = value
    return out


def dump(config: Config, path: Path) -> None:
    """Write the resolved config as YAML that `load` reads; credentials are masked, and given again to go on with it."""
    write_text(path, yaml.safe_dump(masked(to_dict(config)), sort_keys=False))


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


def _build(tree: dict[str, Any]) -> Config:
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """Key, value and rule of what a validation found first."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part)
    text = first["msg"].removeprefix("Value error, ")
    return f"{key}: {shown(first['input'])}: {text[0].lower()}{text[1:]}"
