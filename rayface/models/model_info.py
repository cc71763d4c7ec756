"""Content of `model.json`: backbone, input format and training data of a model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from rayface.models.threshold_card import ThresholdRow, read_rows

DESCRIPTION = "model.json"
HUB_DESCRIPTION = "config.json"  # the same content in a folder of the Hugging Face Hub
WEIGHTS = "model.safetensors"
NORMALISATION = "RGB, x / 127.5 - 1"
_NEEDED = ("backbone", "backbone_args", "embedding_size", "image_size")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a model.

    Attributes:
        backbone: name for `build_backbone`; "onnx" for ONNX files of other programs.
        backbone_args: further arguments of `build_backbone`; JSON types.
        embedding_size: dimension of an embedding, D.
        image_size: side of an aligned input image, pixels.
        normalisation: normalisation of the pixels.
        licence: licence of the training data.
        training_digest: digest of the training data, "" if unknown.
        metrics: evaluation results, {name: number}; JSON types.
        thresholds: cosine thresholds by false acceptance rate, from the last evaluation.
        network: which network of a run it is: "backbone", "ema" (its average by train.ema), or "head.NAME" (a network
            of the head: "head.key" is DCQ's key encoder).
        sha256: sha256 of the weights file.
        rayface_version: version of rayface that wrote it, "" for other programs.
    """

    backbone: str
    backbone_args: Mapping[str, object] = field(default_factory=dict)
    embedding_size: int
    image_size: int
    normalisation: str = NORMALISATION
    licence: str = ""
    training_digest: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)
    thresholds: tuple[ThresholdRow, ...] = ()
    network: str = "backbone"
    rayface_version: str = ""
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> "ModelInfo":
        """Read a `model.json`; unknown keys are ignored.

        Raises:
            ValueError: it is missing, is not JSON, or lacks a key; one line.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"model {path.parent} must have its {DESCRIPTION} beside it; there is none") from None
        except ValueError as error:
            raise ValueError(f"model description {path} must be JSON: {error}") from error
        missing = [key for key in _NEEDED if not isinstance(tree, dict) or key not in tree]
        if missing:
            raise ValueError(f"model description {path} must name {', '.join(_NEEDED)}; it lacks {missing[0]}")
        known = {each.name for each in fields(cls)}
        try:
            thresholds = read_rows(tree.pop("thresholds", ()))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"model description {path} has malformed thresholds: {error!r}") from error
        return cls(**{key: value for key, value in tree.items() if key in known}, thresholds=thresholds)

    def as_dict(self) -> dict[str, object]:
        """Return the content of `model.json`."""
        return {**asdict(self), "thresholds": [asdict(row) for row in self.thresholds]}
