"""Save and load models: safetensors with a description, ONNX, and published checkpoints."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import save_file
from torch import nn

from rayface.backbones import load_backbone
from rayface.backbones.weights import embedding_size_of, read_weights
from rayface.files import publish, sha256_of, write_json
from rayface.models.forward import embed_images, refuse_non_finite
from rayface.models.model_card import write_card
from rayface.models.model_info import DESCRIPTION, HUB_DESCRIPTION, WEIGHTS, ModelInfo
from rayface.models.onnx_model import OUTPUT_SIGN, OnnxModule, describe
from rayface.models.run_files import CONFIG, all_in
from rayface.models.threshold_card import threshold_rows
from rayface.storage import is_local, join, local_copy, split, temporary_name
from rayface.version import VERSION

PUBLISHED_SUFFIXES = (".pt", ".pth")
_SUFFIXES = (".safetensors", ".onnx", *PUBLISHED_SUFFIXES)
_MODELS = f"run directory, a {WEIGHTS}, an .onnx or a .pt/.pth file"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A backbone in evaluation mode, and its `info`, the content of `model.json`."""

    module: nn.Module
    info: ModelInfo

    @property
    def weights_sha256(self) -> str:
        """sha256 of the weights; of an ONNX file that rayface exported, that of the weights it was exported from."""
        said = self.module.metadata.get("sha256") if isinstance(self.module, OnnxModule) else None
        return said or self.info.sha256

    def embed(self, images: ArrayLike, *, flip: bool = True, batch_size: int = 256) -> NDArray[np.float32]:
        """Embed aligned faces.

        Args:
            images: uint8 RGB (N, size, size, 3), size as in `info.image_size`.
            flip: add the embedding of the mirror image, as verification protocols do.
            batch_size: images per batch.

        Returns:
            (N, D) float32 of length 1: the dot product of two rows is their cosine.

        Raises:
            ValueError: images of another type or shape, or a model that returns NaN.
        """
        array, size = np.ascontiguousarray(images), self.info.image_size
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images: {array.dtype} {array.shape}: must be uint8 RGB of shape (N, {size}, {size}, 3); see "
                "rayface.evaluation.alignment"
            )
        if not len(array):
            return np.zeros((0, self.info.embedding_size), np.float32)
        parameter = next(self.module.parameters(), None)  # an ONNX model has none
        device = parameter.device if parameter is not None else "cpu"
        found = embed_images(self.module, array, batch_size=batch_size, device=device, flip=flip)
        return refuse_non_finite(found)


def save_model(
    folder: str | Path,
    backbone: nn.Module,
    *,
    network: str = "backbone",
    name: str,
    backbone_args: Mapping[str, object],
    image_size: int,
    embedding_size: int,
    licence: str,
    training_digest: str,
    metrics: Mapping[str, object],
) -> Path:
    """Write `model.safetensors`, `model.json` and `model_card.md`, each atomically.

    Args:
        folder: created if missing; an existing model is replaced.
        backbone: network whose weights are written.
        network: which network of a run it is, see `ModelInfo.network`.
        name: name of the backbone for `build_backbone`.
        backbone_args: further arguments of `build_backbone`; JSON types.
        image_size: side of an aligned input image, pixels.
        embedding_size: dimension of the output.
        licence: licence of the training data.
        training_digest: digest of the training data.
        metrics: evaluation results, {name: number}.

    Returns:
        The path of `model.safetensors`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS
    sha256 = write_weights(backbone, weights)
    info = ModelInfo(
        backbone=name,
        backbone_args=dict(backbone_args),
        embedding_size=embedding_size,
        image_size=image_size,
        licence=licence,
        training_digest=training_digest,
        metrics=dict(metrics),
        thresholds=threshold_rows(metrics),
        network=network,
        rayface_version=VERSION,
        sha256=sha256,
    )
    write_json(folder / DESCRIPTION, info.as_dict())
    write_card(folder, info)
    return weights


def write_weights(module: nn.Module, path: Path) -> str:
    """Write the weights of a module as safetensors, atomically; return their sha256."""
    temporary = Path(temporary_name(str(path)))
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(tensors, temporary, metadata={"format": "pt"})
    digest = sha256_of(temporary)
    publish(temporary, path)
    return digest


def check_writable_card(path: str | Path) -> Path:
    """Return the folder of a model whose description `write_metrics` can replace.

    Raises:
        ValueError: it is not a run directory or model.safetensors; one line.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    if not is_local(str(path)):
        raise ValueError(f"evaluate.write_card: {path}: must be on a local disk: evaluate a copy there, then upload it")
    if not (given.is_dir() or given.name == WEIGHTS) or not (folder / DESCRIPTION).is_file():
        raise ValueError(
            f"evaluate.write_card: {path}: must be a run directory or {WEIGHTS} with its {DESCRIPTION}: evaluate the "
            "run, then export it"
        )
    return folder


def write_metrics(path: str | Path, metrics: Mapping[str, object]) -> None:
    """Replace the metrics and thresholds in the `model.json` and the `model_card.md` of a model.

    Raises:
        ValueError: see `check_writable_card`, or the description is invalid; one line.
    """
    folder = check_writable_card(path)
    info = ModelInfo.read(folder / DESCRIPTION)
    info = replace(info, metrics=dict(metrics), thresholds=threshold_rows(metrics))
    write_json(folder / DESCRIPTION, info.as_dict())
    write_card(folder, info)


def load_model(path: str | Path, *, backbone: str | None = None, device: str | torch.device = "cpu") -> LoadedModel:
    """Load one of our models, or a published one.

    Args:
        path: path or URI of a run directory or a folder of the Hub, of its `model.safetensors` (with `model.json` or
            `config.json` beside it), of an `.onnx` file (which runs on the CPU; `model.onnx::OUTPUT` if several outputs
            have the shape (N, D)), or of a published `.pt`/`.pth` file or training checkpoint, which is read without
            running code from it.
        backbone: name of the backbone of a published file; our files hold it.
        device: device of the model.

    Raises:
        ValueError: the file is missing, its description is missing or belongs to other weights, or the weights do not
            fit the backbone.
    """
    name, _, output = str(path).partition(OUTPUT_SIGN)
    path = weights_file(name)
    if not path.is_file():
        raise ValueError(f"model {path} must be a {_MODELS}; there is no such file")
    if path.suffix == ".onnx":
        if backbone is not None:
            raise ValueError(f"backbone: {backbone}: has no effect: {path} holds its network: leave it out")
        session = OnnxModule(path, output or None)
        info = describe(session, weights_digest(path) + (OUTPUT_SIGN + output if output else ""))
        return LoadedModel(module=session.eval(), info=info)
    if output:
        raise ValueError(f"model {path}{OUTPUT_SIGN}{output}: only .onnx files have named outputs; leave it out")
    info = _published(path, backbone) if path.suffix in PUBLISHED_SUFFIXES else _description(path, backbone)
    module = load_backbone(
        info.backbone,
        path,
        embedding_size=info.embedding_size,
        image_size=info.image_size,
        **info.backbone_args,
    )
    return LoadedModel(module=module.to(device).eval(), info=info)


def weights_file(model: str) -> Path:
    """Return the local path of a model's file: of a folder its weights, of a URI a copy with its description.

    The name of an output of an ONNX file is left out.

    Raises:
        ValueError: a local folder without weights.
        DataError, StorageError: see `local_copy`.
    """
    model = model.partition(OUTPUT_SIGN)[0]
    if is_local(model):
        path = Path(model)
        return _weights_in(path) if path.is_dir() else path
    name = split(model)[1]
    file = model if Path(name).suffix in _SUFFIXES else join(model, WEIGHTS)
    return local_copy(file, beside=(DESCRIPTION, HUB_DESCRIPTION, f"{name}.data"))


def weights_digest(path: Path) -> str:
    """Return the sha256 of a model's file, for an ONNX file with its weights beside it also of these."""
    external = path.with_name(f"{path.name}.data")
    if path.suffix != ".onnx" or not external.is_file():
        return sha256_of(path)
    return hashlib.sha256((sha256_of(path) + sha256_of(external)).encode()).hexdigest()


def _weights_in(folder: Path) -> Path:
    weights = folder / WEIGHTS
    if weights.is_file():
        return weights
    if not (folder / CONFIG).is_file():
        raise ValueError(f"model {folder}: this folder has no {WEIGHTS}: must be a {_MODELS}")
    export = f", or write the model of a checkpoint: `rayface checkpoint export {shlex.quote(str(folder))} --out DIR`"
    raise ValueError(
        f"model {folder}: is an unfinished run, it has no {WEIGHTS} yet: resume it with "
        f"`rayface train --resume {shlex.quote(f'train.output={folder}')}`{export if all_in(folder) else ''}"
    )


def _published(path: Path, backbone: str | None) -> ModelInfo:
    if backbone is None:
        raise ValueError(f"model {path} does not name its backbone: set `backbone` too, for example r50")
    return ModelInfo(
        backbone=backbone,
        embedding_size=embedding_size_of(backbone, read_weights(path)),
        image_size=112,
        licence="unknown: ask the publisher",
        sha256=sha256_of(path),
    )


def _description(path: Path, backbone: str | None) -> ModelInfo:
    description = path.with_name(DESCRIPTION)
    if not description.exists() and path.with_name(HUB_DESCRIPTION).exists():
        description = path.with_name(HUB_DESCRIPTION)
    info = ModelInfo.read(description)
    if backbone not in (None, info.backbone):
        raise ValueError(f"backbone: {backbone}: {description} names {info.backbone}: leave it out")
    found = sha256_of(path)
    if info.sha256 not in ("", found):
        raise ValueError(f"model {path} is not the one that {description} describes: its sha256 is {found}")
    return replace(info, sha256=found)
