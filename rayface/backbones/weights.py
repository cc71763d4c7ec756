"""Weights of backbones from files: ours (safetensors) and published PyTorch state dicts."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rayface.backbones.registry import build_backbone

_NUM_NAMED = 3  # names of a kind that an error lists before it counts


def load_backbone(name: str, path: str | Path, **arguments: Any) -> nn.Module:
    """Build the backbone `name` with `arguments` (see `build_backbone`) and fill it with the weights at `path`.

    `path` is a .safetensors file of ours or a published .pt/.pth state dict, as arcface_torch and MixFaceNets
    have them; a `module.` in front of its names, left by data-parallel training, is taken off. Returns the net
    in evaluation mode, on the CPU.

    Raises ValueError where the file is missing, not a state dict, or does not fit the net: it then names what is
    missing, unexpected or of another shape.
    """
    net = build_backbone(name, **arguments)
    fill_backbone(net, path, name)
    return net.eval()


def fill_backbone(net: nn.Module, path: str | Path, name: str) -> None:
    """Fill the net called `name` with the weights at `path`; as `load_backbone`.

    Raises ValueError as `load_backbone` does.
    """
    weights = read_weights(path)
    wrong = misfit(net.state_dict(), weights)
    if wrong:
        raise ValueError(
            f"weights {path} do not fit {name}: {wrong}; check the name, embedding_size, image_size and width"
        )
    net.load_state_dict(weights, strict=False)  # all but step counters, which old files lack, has been compared


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict, name -> tensor on the CPU, without running any code that the file may carry.

    Raises ValueError where the file is missing, of another kind, or not a flat dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {path} is not a file; give a .safetensors, .pt or .pth file")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights {path} has suffix {path.suffix!r}; it must be .safetensors, .pt or .pth")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"weights {path} cannot be read as tensors: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a training checkpoint around the net
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ValueError(f"weights {path} is not a state dict: it must map names to tensors")
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def misfit(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> str:
    """Say in one line what keeps `given` from filling `wanted`; empty where nothing does."""
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
    return "; ".join(f"{kind} {_shortened(names)}" for kind, names in kinds if names)


def _shortened(names: list[str]) -> str:
    rest = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
