"""ONNX models: an onnxruntime session with the interface of a torch module."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rayface.backbones.weights import refuse_placeholder
from rayface.models.model_info import NORMALISATION, ModelInfo
from rayface.models.threshold_card import read_rows

OUTPUT_SIGN = "::"  # model.onnx::OUTPUT names one of several outputs
_PREFIX = "rayface."
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxModule(nn.Module):
    """onnxruntime session as a module: (N, 3, S, S) in [-1, 1] -> (N, D), raw; inference on the CPU only.

    For a model with a fixed batch size, images are split into batches and the last one is zero-padded. Of several
    outputs the one of shape (N, D) is used.

    Args:
        path: the file.
        output: name of the output, if several have the shape (N, D).

    Attributes:
        size: side of the images, pixels.
        embedding_size: D.
        metadata: metadata of the file, without the prefix `rayface.`; empty for files of other programs.

    Raises:
        ValueError: the file is not such a model, one line.
    """

    def __init__(self, path: Path, output: str | None = None) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("models in ONNX need onnxruntime: pip install 'rayface[onnx]'") from error
        refuse_placeholder(path, "model")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"model {path} cannot be read by onnxruntime: {reason}") from error
        inputs = self.session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int):
            raise ValueError(f"model {path} must take one batch of images (N, 3, size, size), it takes {shape}")
        if inputs[0].type not in _TYPES:
            raise ValueError(f"model {path} must take floating-point images, it takes {inputs[0].type}")
        self.size = shape[2]
        self._type = _TYPES[inputs[0].type]
        self._input = inputs[0].name
        self._batch = shape[0] if isinstance(shape[0], int) else None
        self._output, self.embedding_size = self._embedding_output(path, output)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {k.removeprefix(_PREFIX): v for k, v in properties.items() if k.startswith(_PREFIX)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        array = images.float().cpu().contiguous().numpy()
        if self._batch is None:
            return torch.from_numpy(self._run(array)).to(images.device)
        parts = [self._piece(array[start : start + self._batch]) for start in range(0, len(array), self._batch)]
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _piece(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._batch is not None
        missing = self._batch - len(images)
        return self._run(np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))))[: len(images)]

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self.session.run([self._output], {self._input: images.astype(self._type)})[0]
        return found.reshape(len(images), self.embedding_size).astype(np.float32)

    def _embedding_output(self, path: Path, wanted: str | None) -> tuple[str, int]:
        """Return name and dimension of the output with one vector per image."""
        lengths = {name: _length(shape) for name, shape in self._output_shapes().items()}
        vectors = {name: length for name, length in lengths.items() if length}
        if wanted is not None:
            if wanted not in vectors:
                raise ValueError(
                    f"model {path}: {wanted!r} is not an output of shape (N, D); there are {_listed(vectors)}"
                )
            return wanted, vectors[wanted]
        if not vectors:
            shapes = {output.name: output.shape for output in self.session.get_outputs()}
            raise ValueError(f"model {path} must return embeddings of shape (N, D), its outputs are {shapes}")
        if len(vectors) > 1:
            raise ValueError(
                f"model {path} has several outputs of shape (N, D): {_listed(vectors)}: name the embedding's, as "
                f"{path}{OUTPUT_SIGN}{next(iter(vectors))}"
            )
        return next(iter(vectors.items()))

    def _output_shapes(self) -> dict[str, list[Any]]:
        """Return the shapes of the outputs; if the file does not hold them, embed a blank image."""
        shapes = {output.name: list(output.shape) for output in self.session.get_outputs()}
        if not all(shape and all(isinstance(side, int) for side in shape[1:]) for shape in shapes.values()):
            blank = np.zeros((self._batch or 1, 3, self.size, self.size), self._type)
            found = self.session.run(list(shapes), {self._input: blank})
            shapes = {name: list(np.shape(value)) for name, value in zip(shapes, found, strict=True)}
        return shapes


def _length(shape: list[Any]) -> int | None:
    """Return D of an output (N, D) or (N, D, 1, 1); None for other shapes, and for D = 1."""
    if len(shape) < 2 or shape[1] == 1 or any(side != 1 for side in shape[2:]):
        return None
    return int(shape[1])


def _listed(vectors: dict[str, int]) -> str:
    return ", ".join(f"{name} (N, {length})" for name, length in vectors.items())


def describe(module: OnnxModule, sha256: str) -> ModelInfo:
    """Return the model info of the file; files of other programs are assumed to use the usual normalisation."""
    said = module.metadata
    return ModelInfo(
        backbone=said.get("backbone", "onnx"),
        embedding_size=module.embedding_size,
        image_size=module.size,
        normalisation=said.get("normalisation", NORMALISATION),
        licence=said.get("licence", "unknown: ask the publisher"),
        training_digest=said.get("training_digest", ""),
        thresholds=read_rows(json.loads(said.get("thresholds", "[]"))),
        sha256=sha256,
    )
