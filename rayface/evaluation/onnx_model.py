"""ONNX files as models: onnxruntime behind the interface of a torch module."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

_PREFIX = "rayface."


class OnnxModule(nn.Module):
    """An onnxruntime session as a module: (N, 3, S, S) in [-1, 1] -> (N, D), raw; it runs on the CPU and cannot learn.

    Attributes:
        size: side of the images, pixels.
        metadata: what the file says of itself, without the prefix `rayface.`; empty for files of others.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("models in ONNX need onnxruntime: pip install 'rayface[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"model {path} cannot be read by onnxruntime: {reason}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape, length = inputs[0].shape, outputs[0].shape[-1]
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int):
            raise ValueError(f"model {path} must take one batch of images (N, 3, size, size), it takes {shape}")
        if not isinstance(length, int):
            raise ValueError(f"model {path} must give embeddings of a fixed length, its output is {outputs[0].shape}")
        self.size, self.embedding_size = shape[2], length
        self._input, self._output = inputs[0].name, outputs[0].name
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = {k.removeprefix(_PREFIX): v for k, v in properties.items() if k.startswith(_PREFIX)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.session.run([self._output], {self._input: images.float().cpu().contiguous().numpy()})[0]
        return torch.from_numpy(found).to(images.device)


def describe(module: OnnxModule, sha256: str, normalisation: str) -> dict[str, Any]:
    """What `model.json` would say of the file; files of others are taken to have the field's usual normalisation."""
    said = module.metadata
    return {
        "backbone": said.get("backbone", "onnx"),
        "backbone_args": {},
        "embedding_size": module.embedding_size,
        "image_size": module.size,
        "normalisation": said.get("normalisation", normalisation),
        "licence": said.get("licence", "unknown: ask the publisher"),
        "training_digest": said.get("training_digest", ""),
        "metrics": {},
        "sha256": sha256,
    }
