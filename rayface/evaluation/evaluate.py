"""Evaluate a model file and write the results into a folder."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from rayface.config import Config, require_keys
from rayface.credentials import masked
from rayface.curves import training_plots
from rayface.evaluation.protocol import Figure, Roc
from rayface.evaluation.protocols import protocol_class
from rayface.models.forward import embed_images
from rayface.models.model_files import load_model
from rayface.progress import phase
from rayface.storage import join, make_folder, normalise, one_line, write_bytes


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Model, inputs and figures of an evaluation."""

    model: str
    inputs: Mapping[str, str]
    """Names and paths of what the model was measured on."""
    figures: Mapping[str, Figure]

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return {"model": self.model, **self.inputs, **self.figures}


def evaluate(config: Config) -> EvaluationResult:
    """Measure `evaluate.model` by `evaluate.protocol`; write evaluation.json and plots into `evaluate.out`.

    Runs in this process, in float32, on a GPU if there is one.

    Raises:
        ValueError: bad input, one line.
    """
    require_keys(config, "evaluate.model", "evaluate.out")
    given = config.evaluate
    protocol_type = protocol_class(given)
    if protocol_type is None:
        raise ValueError(f"evaluate.protocol: {given.protocol}: its inputs are not set, for example evaluate.pairs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(str(given.model), backbone=given.backbone, device=device)
    protocol = protocol_type.open(given, image_size=loaded.info.image_size)
    root = normalise(str(given.out))
    make_folder(join(root, "plots"))  # fail before the work if it cannot be written
    module = loaded.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with phase("embed images", rows=protocol.num_images):
        images = protocol.read_images(0, protocol.num_images)
        embeddings = embed_images(module, images, batch_size=given.batch_size, device=device)
    with phase("score"):
        scored = protocol.score(embeddings)
    result = EvaluationResult(model=str(given.model), inputs=protocol.inputs, figures=scored.figures())
    with phase("write results"):
        _write(root, {**result.as_dict(), **scored.as_dict()}, scored.roc)
    return result


def _write(root: str, content: Mapping[str, object], roc: Roc | None) -> None:
    try:
        if roc is not None:
            with tempfile.TemporaryDirectory() as drawn:
                for name, path in training_plots(Path(drawn), metrics={}, roc=(roc.far, roc.tar)).items():
                    write_bytes(join(root, f"plots/{name}.png"), path.read_bytes())
        write_bytes(join(root, "evaluation.json"), json.dumps(masked(dict(content)), indent=1).encode())
    except (pa.ArrowException, OSError) as error:
        where = f"evaluate.out: {root}"
        raise ValueError(f"{where}: cannot be written: {one_line(error)}: choose another directory") from error
