"""Evaluation of a finished model, from its file to a folder of results."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rayface.config import Config
from rayface.credentials import masked
from rayface.curves import training_plots
from rayface.evaluation.pairs import embed_images, load_pairs, pair_result
from rayface.evaluation.verification import pair_scores, roc_of, thinned
from rayface.models.model_files import load_model
from rayface.storage import join, make_folder, normalise, one_line, write_bytes


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate `evaluate.model` on `evaluate.pairs` and `evaluate.data`; see `evaluate_on_pairs`."""
    given = config.evaluate
    return evaluate_on_pairs(
        str(given.model),
        str(given.pairs),
        given.data,
        str(given.out),
        backbone=given.backbone,
        batch_size=given.batch_size,
    )


def evaluate_on_pairs(
    model: str,
    pairs: str,
    data: str | Sequence[str],
    out: str | Path,
    *,
    backbone: str | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Measure a model on verification pairs and write OUT/evaluation.json and OUT/plots/roc.png.

    Runs on CUDA where there is one, in float32, in this process.

    Args:
        model: run directory, model.safetensors, or a published checkpoint with `backbone`.
        pairs: CSV with path_a, path_b, is_same, fold.
        data: dataset directory that holds the members, or several.
        out: directory or URI, made if missing.

    Raises:
        ValueError: bad input, one line.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(model, backbone=backbone, device=device)
    pair_set = load_pairs(pairs, data, image_size=loaded.info["image_size"])
    root = normalise(out)
    plots = join(root, "plots")
    make_folder(plots)  # before the work
    module = loaded.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    embeddings = embed_images(module, pair_set.images, batch_size=batch_size, device=device)
    distance, cosine = pair_scores(embeddings, pair_set.a, pair_set.b)
    result = {"model": str(model), "pairs": str(pairs), **pair_result(distance, cosine, pair_set)}
    far, tar, _ = roc_of(cosine, pair_set.is_same)
    try:
        with tempfile.TemporaryDirectory() as drawn:
            for name, path in training_plots(Path(drawn), metrics={}, roc=(far, tar)).items():
                write_bytes(join(plots, f"{name}.png"), path.read_bytes())
        told = masked({**result, "roc": thinned(far, tar)})
        write_bytes(join(root, "evaluation.json"), json.dumps(told, indent=1).encode())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"evaluate.out: {out}: cannot be written: {one_line(error)}: choose another directory"
        ) from error
    return result
