"""Export models to ONNX, verified against PyTorch before the file is published."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rayface.files import publish
from rayface.models.model_card import write_card
from rayface.models.model_files import LoadedModel
from rayface.models.model_info import NORMALISATION
from rayface.models.onnx_model import OnnxModule
from rayface.models.threshold_card import as_json
from rayface.storage import DAY, delete_temporary, temporary_name

ONNX_OPSET = 18
MAX_ONNX_ERROR = 1e-3  # maximum absolute error of an embedding of length 1
MAX_SINGLE_FILE = 1_900_000_000  # bytes; a protobuf message is limited to 2 GiB


def export_onnx(model: LoadedModel, out: str | Path, *, external_data: bool = False) -> dict[str, object]:
    """Write a model as ONNX with a dynamic batch, if onnxruntime's embeddings equal PyTorch's.

    Input `image` float32 (N, 3, size, size), RGB, x / 127.5 - 1; output `embedding` float32 (N, D), raw. This is also
    in the file's metadata and in `model_card.md` beside it.

    Args:
        model: from `load_model`.
        out: the `.onnx` file; written under a temporary name first.
        external_data: write the weights into `OUT.data` beside it; always above 1.9 GB, the limit of one file.

    Returns:
        max_abs_error (largest difference of normalised embeddings, random images, batches of 1 and 3), opset, num_bytes
        (of all files), external_data.

    Raises:
        ValueError: the extra `onnx` is not installed, `out` does not end in `.onnx`, the model is already ONNX, or the
            difference is above 1e-3.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"export.onnx: {out}: must end in .onnx")
    if isinstance(model.module, OnnxModule):
        raise ValueError(
            "export.model: is already in ONNX: give a run directory, a model.safetensors or a .pt/.pth file"
        )
    _check_installed()
    import onnx

    tensors = model.module.state_dict().values()
    external_data |= sum(tensor.numel() * tensor.element_size() for tensor in tensors) > MAX_SINGLE_FILE
    folder = Path(temporary_name(str(out)))  # a folder, because the .onnx holds the file name of its weights
    folder.mkdir(parents=True)
    delete_temporary(out.parent, of=out.name, min_age=DAY)
    try:
        weights = {"save_as_external_data": True, "location": f"{out.name}.data"} if external_data else {}
        onnx.save(_onnx_model(model), folder / out.name, **weights)
        error_size = _onnx_error(model, folder / out.name)
        if not error_size <= MAX_ONNX_ERROR:
            raise ValueError(
                f"the ONNX model differs from PyTorch by {error_size:.1e}, the limit is {MAX_ONNX_ERROR:.0e}"
            )
        num_bytes = _publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_card(out.parent, model.info, out.name)
    facts = {"opset": ONNX_OPSET, "num_bytes": num_bytes, "external_data": external_data}
    return {"max_abs_error": error_size, **facts}


def _publish(folder: Path, out: Path) -> int:
    """Give the files their names, the weights first, on which the .onnx depends; return their bytes."""
    written = sorted(folder.iterdir(), reverse=True)
    num_bytes = sum(path.stat().st_size for path in written)
    if len(written) > 1:
        out.unlink(missing_ok=True)  # an interruption must not leave an earlier .onnx beside these weights
    for path in written:
        publish(path, out.with_name(path.name))
    return num_bytes


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ValueError(f"export to ONNX needs {error.name}: pip install 'rayface[onnx]'") from error


def _onnx_model(model: LoadedModel) -> Any:
    """Export the network, with the format of its input and output in the metadata."""
    size = model.info.image_size
    proto = _traced(model.module, torch.zeros(2, 3, size, size, device=next(model.module.parameters()).device))
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces with paths of this machine
    for key in ("backbone", "embedding_size", "image_size", "normalisation", "licence", "training_digest", "sha256"):
        proto.metadata_props.add(key=f"rayface.{key}", value=str(getattr(model.info, key)))
    if model.info.thresholds:
        proto.metadata_props.add(key="rayface.thresholds", value=as_json(model.info.thresholds))
    output = f"embedding float32 (N, {model.info.embedding_size}), raw"
    proto.metadata_props.add(key="rayface.input", value=f"image float32 (N, 3, {size}, {size}), {NORMALISATION}")
    proto.metadata_props.add(key="rayface.output", value=output)
    return proto


def _traced(module: nn.Module, images: torch.Tensor) -> Any:
    # The exporter warns about torchvision's operators, which no backbone uses, and about its own calls.
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
    assert program is not None  # None only if torch writes the file itself
    return program.model_proto


def _onnx_error(model: LoadedModel, path: Path) -> float:
    """Return the largest difference of normalised embeddings between onnxruntime and PyTorch on random images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = model.info.image_size
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
    embeddings = embeddings.astype(
        np.float64
    )  # raw embeddings of deep untrained networks reach 1e25, whose square overflows float32
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
