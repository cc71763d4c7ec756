"""Write a model as a folder of the Hugging Face Hub: weights, config.json and a model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rayface.files import write_file, write_json
from rayface.hub_card import CARD, hub_card
from rayface.models.model_card import card
from rayface.models.model_files import LoadedModel, write_weights
from rayface.models.model_info import HUB_DESCRIPTION, WEIGHTS
from rayface.models.onnx_model import OnnxModule
from rayface.storage import DataError


def export_hub(model: LoadedModel, folder: Path) -> dict[str, object]:
    """Write model.safetensors, config.json and README.md, each atomically; `load_model` reads the folder.

    Args:
        folder: created if missing; an existing model is replaced.

    Returns:
        number of parameters and sha256 of the weights.

    Raises:
        DataError: a model without weights, or a folder that cannot be written; one line.
    """
    if isinstance(model.module, OnnxModule):
        raise DataError("export.hub: an ONNX file has no weights of a backbone: give the run that it was exported from")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        info = replace(model.info, sha256=write_weights(model.module, folder / WEIGHTS))
        write_json(
            folder / HUB_DESCRIPTION, {"model_type": "rayface", "architectures": [info.backbone], **info.as_dict()}
        )
        values = {
            "library_name": "rayface",
            "pipeline_tag": "image-feature-extraction",
            "tags": ["face-recognition", "face-embeddings"],
        }
        write_file(folder / CARD, hub_card(values, info.licence, card(info)))
    except OSError as error:
        raise DataError(f"export.hub: {folder}: cannot be written: {error.strerror or error}") from error
    return {"parameters": sum(each.numel() for each in model.module.parameters()), "sha256": info.sha256}
