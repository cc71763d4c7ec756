"""Groups of a model: its backbone, its head, and its export."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config_fields import STRICT, Bytes, Fixed, Operational, Options, PathLike, PathText, Positive, Shown


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
    """Fraction of its class centers that a worker uses in each step: those of the batch, and a random sample."""
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
