"""What `model.json` says of a model: the net, the input that it takes, and what it learned from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

DESCRIPTION = "model.json"
NORMALISATION = "RGB, x / 127.5 - 1"
_NEEDED = ("backbone", "backbone_args", "embedding_size", "image_size")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a model.

    Attributes:
        backbone: name for `build_backbone`, "onnx" for a file of others.
        backbone_args: further arguments of `build_backbone`, in JSON's types.
        embedding_size: length of an embedding, D.
        image_size: side of the aligned face that it takes, pixels.
        normalisation: of the pixels.
        licence: of the data that it was trained on.
        training_digest: of the dataset that it was trained on, "" if unknown.
        metrics: what it reached, {name: number}, in JSON's types.
        sha256: of the file of its weights.
        rayface_version: that wrote it, "" if another program did.
    """

    backbone: str
    backbone_args: Mapping[str, object] = field(default_factory=dict)
    embedding_size: int
    image_size: int
    normalisation: str = NORMALISATION
    licence: str = ""
    training_digest: str = ""
    metrics: Mapping[str, object] = field(default_factory=dict)
    rayface_version: str = ""
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> "ModelInfo":
        """Read a `model.json`; keys of other versions are left out.

        Raises:
            ValueError: it is missing, no JSON, or lacks a key; one line.
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
        return cls(**{key: value for key, value in tree.items() if key in known})

    def as_dict(self) -> dict[str, object]:
        """Return the content of `model.json`."""
        return asdict(self)
