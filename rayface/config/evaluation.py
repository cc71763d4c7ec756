"""Group of evaluation: protocols, their inputs and how a model is measured."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config_fields import (
    STRICT,
    Cosine,
    DiskPath,
    Names,
    NotNegative,
    Operational,
    Options,
    PathLike,
    Paths,
    PathText,
    Positive,
)


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
