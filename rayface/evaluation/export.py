"""Models as files: safetensors with a description beside it, and ONNX."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import rayface
from rayface.backbones import load_backbone

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
NORMALISATION = "RGB, x / 127.5 - 1"
ONNX_OPSET = 18
MAX_ONNX_ERROR = 1e-3  # of an embedding of length 1
PUBLISHED_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A backbone in evaluation mode, and `info`: what `model.json` says of it."""

    module: nn.Module
    info: dict[str, Any]


def save_model(
    folder: str | Path,
    backbone: nn.Module,
    *,
    name: str,
    backbone_args: Mapping[str, Any],
    image_size: int,
    embedding_size: int,
    licence: str,
    training_digest: str,
    metrics: Mapping[str, Any],
) -> Path:
    """Write `model.safetensors` and `model.json`, each under a temporary name that is then replaced.

    Args:
        folder: made if missing; a model that is there is replaced.
        backbone: the net; its weights are copied to the CPU.
        name: its name for `build_backbone`.
        backbone_args: further arguments of `build_backbone`, as JSON can hold them.
        image_size: side of the aligned face that it takes, pixels.
        embedding_size: length of its output.
        licence: of the data that it was trained on.
        training_digest: of the dataset that it was trained on.
        metrics: what it reached, {name: number}.

    Returns:
        the path of `model.safetensors`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    temporary = _temporary(weights)
    tensors = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    save_file(tensors, temporary, metadata={"format": "pt"})
    info = {
        "backbone": name,
        "backbone_args": dict(backbone_args),
        "embedding_size": embedding_size,
        "image_size": image_size,
        "normalisation": NORMALISATION,
        "licence": licence,
        "training_digest": training_digest,
        "metrics": dict(metrics),
        "rayface_version": rayface.__version__,
        "sha256": _sha256(temporary),
    }
    _replace(temporary, weights)
    temporary = _temporary(folder / DESCRIPTION)
    temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    _replace(temporary, folder / DESCRIPTION)
    return weights


def load_model(path: str | Path, *, backbone: str | None = None, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model of ours, or a published one.

    Args:
        path: a run directory, its `model.safetensors` (with `model.json` beside it), or a published `.pt`/`.pth` file,
            which is read without running any code in it.
        backbone: the net's name, for a published file, which does not say it; ours says it itself.
        device: where to put it.

    Raises:
        ValueError: nothing is there, the description is missing or of other weights, or the weights do not fit the net.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise ValueError(f"model {path} must be a run directory, a {WEIGHTS} or a .pt/.pth file; there is no such file")
    info = _published(path, backbone) if path.suffix in PUBLISHED_SUFFIXES else _description(path, backbone)
    module = load_backbone(
        info["backbone"],
        path,
        embedding_size=info["embedding_size"],
        image_size=info["image_size"],
        **info["backbone_args"],
    )
    return LoadedModel(module=module.to(device).eval(), info=info)


def _published(path: Path, backbone: str | None) -> dict[str, Any]:
    if backbone is None:
        raise ValueError(f"model {path} does not say which net it is: name it with --backbone, such as r50")
    return {
        "backbone": backbone,
        "backbone_args": {},
        "embedding_size": 512,
        "image_size": 112,
        "normalisation": NORMALISATION,
        "licence": "unknown: ask the publisher",
        "training_digest": "",
        "metrics": {},
        "sha256": _sha256(path),
    }


def _description(path: Path, backbone: str | None) -> dict[str, Any]:
    description = path.with_name(DESCRIPTION)
    try:
        info = json.loads(description.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model {path} must have its {DESCRIPTION} beside it; there is none") from None
    except ValueError as error:
        raise ValueError(f"model description {description} must be JSON: {error}") from error
    needed = ("backbone", "backbone_args", "embedding_size", "image_size")
    missing = [key for key in needed if not isinstance(info, dict) or key not in info]
    if missing:
        raise ValueError(f"model description {description} must name {', '.join(needed)}; it lacks {missing[0]}")
    if backbone not in (None, info["backbone"]):
        raise ValueError(
            f"--backbone {backbone} contradicts {description}, which says {info['backbone']}: leave it out"
        )
    if info.get("sha256", (found := _sha256(path))) != found:
        raise ValueError(f"model {path} is not the one that {description} describes: its sha256 is {found}")
    return info


def export_onnx(model: LoadedModel, out: str | Path) -> dict[str, Any]:
    """Write a model as ONNX with a free batch size, and only if onnxruntime gets what PyTorch gets.

    Input `image` float32 (N, 3, size, size), RGB, x / 127.5 - 1; output `embedding` float32 (N, D), raw. The file's
    metadata says the same.

    Args:
        model: from `load_model`.
        out: the `.onnx` file; written under a temporary name first.

    Returns:
        max_abs_error (largest difference of normalised embeddings, random images, batches of 1 and 3), opset, path,
        num_bytes.

    Raises:
        ValueError: the extra `onnx` is not installed, `out` is no `.onnx` name, or the difference is above 1e-3.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"--onnx {out} must end in .onnx")
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"export to ONNX needs {error.name}: pip install 'rayface[onnx]'") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(out)
    try:
        onnx.save(_onnx_model(model), temporary)
        error_size = _onnx_error(model, temporary)
        if not error_size <= MAX_ONNX_ERROR:
            raise ValueError(
                f"the ONNX model differs from PyTorch by {error_size:.1e}, the limit is {MAX_ONNX_ERROR:.0e}"
            )
        _replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return {"path": str(out), "max_abs_error": error_size, "opset": ONNX_OPSET, "num_bytes": out.stat().st_size}


def _onnx_model(model: LoadedModel) -> Any:
    """Export the net, and write the contract of its input into the metadata."""
    size = model.info["image_size"]
    proto = _traced(model.module, torch.zeros(2, 3, size, size, device=next(model.module.parameters()).device))
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    for key in ("backbone", "embedding_size", "image_size", "normalisation", "licence", "training_digest"):
        proto.metadata_props.add(key=f"rayface.{key}", value=str(model.info[key]))
    proto.metadata_props.add(key="rayface.input", value=f"image float32 (N, 3, {size}, {size}), {NORMALISATION}")
    return proto


def _traced(module: nn.Module, images: torch.Tensor) -> Any:
    # the exporter warns of torchvision's operators, which no net here has, and of calls of its own
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (images,),
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=ONNX_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None only where torch writes the file itself
    return program.model_proto


def _onnx_error(model: LoadedModel, path: Path) -> float:
    """The largest difference between normalised embeddings of onnxruntime and PyTorch on random images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = model.info["image_size"]
    parameter = next(model.module.parameters())
    random = np.random.default_rng(0)
    worst = 0.0
    for batch_size in (1, 3):
        image = (random.integers(0, 256, (batch_size, 3, size, size)) / 127.5 - 1).astype(np.float32)
        got = session.run(["embedding"], {"image": image})[0]
        with torch.inference_mode():
            wanted = model.module(torch.from_numpy(image).to(parameter)).float().cpu().numpy()
        worst = max(worst, float(np.abs(_unit(got) - _unit(wanted)).max()))
    return worst


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _replace(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
