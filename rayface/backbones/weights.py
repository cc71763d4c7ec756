"""Load weights of backbones: our safetensors files and published PyTorch state dicts."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rayface.backbones.registry import build_backbone
from rayface.backbones.shapes import shapes_only

_NUM_NAMED = 3  # maximum number of names that an error lists
_SUFFIXES = (".safetensors", ".pt", ".pth")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_CONTAINERS = ("state_dict_backbone", "state_dict", "model")  # keys in training checkpoints, arcface_torch's first


class _Ignored:
    """Stands for a NumPy value, which training checkpoints hold beside the weights: it keeps nothing.

    NumPy's own constructors trust their arguments: a file can have them use memory that is free, or any address.
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_IGNORED = [(_Ignored, f"numpy.{name}") for name in ("dtype", "ndarray")]
_IGNORED += [
    (_Ignored, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")
]


def load_backbone(name: str, path: str | Path, *, embedding_size: int | None = None, **arguments: Any) -> nn.Module:
    """Build the backbone `name` with `arguments` (see `build_backbone`) and load the weights at `path`.

    `path` is one of our .safetensors files, a published .pt/.pth state dict of arcface_torch or MixFaceNets, or a
    training checkpoint that holds one as `state_dict_backbone` (checkpoint_gpu_0.pt), `state_dict` or `model`. The
    prefixes `module.` and `_orig_mod.` are removed. `embedding_size` None: that of the weights.

    Returns the backbone in evaluation mode, on the CPU.

    Raises ValueError if the file is missing, is not a state dict, holds NaN, or does not fit the backbone; the message
    names missing and unexpected keys and other shapes.
    """
    weights = read_weights(path)
    size = embedding_size or embedding_size_of(name, weights, **arguments)
    net = build_backbone(name, embedding_size=size, **arguments)
    _fill(net, weights, path, name)
    return net.eval()


def fill_backbone(net: nn.Module, path: str | Path, name: str) -> None:
    """Load the weights at `path` into the backbone `net` of name `name`; see `load_backbone`.

    Raises ValueError as `load_backbone` does.
    """
    _fill(net, read_weights(path), path, name)


def embedding_size_of(name: str, weights: dict[str, torch.Tensor], **arguments: Any) -> int:
    """Return the embedding size of `weights` of the backbone `name`.

    It is the number of rows of the last layers, found by comparing two backbones of different embedding sizes. Returns
    512 if `weights` lack these layers; loading then reports the misfit.
    """
    with shapes_only():
        one, other = (build_backbone(name, embedding_size=size, **arguments).state_dict() for size in (512, 256))
    sized = [key for key in one if one[key].shape != other[key].shape and key in weights and weights[key].ndim]
    return len(weights[sized[-1]]) if sized else 512


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict, name -> tensor on the CPU, without running code from the file.

    Raises ValueError if the file is missing, of another format, not a flat dict of tensors, or holds NaN or infinity.
    """
    path = Path(path)
    content = read_tensors(path)
    found = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), content)
    if not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(
            f"weights {path} is not a state dict: it must map names to tensors, or hold such a dict as one of "
            f"{', '.join(_CONTAINERS)}; it has {', '.join(map(str, list(content)[:_NUM_NAMED])) or 'nothing'}"
        )
    weights = {_without_prefixes(key): tensor for key, tensor in found.items()}
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"weights {path}: {key} holds NaN or infinity: its training diverged; use an earlier checkpoint"
            )
    return weights


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a .safetensors file, or a .pt/.pth file of a dict or one tensor (as {"": tensor}), without running its code.

    Raises ValueError, one line, if the file is missing, corrupt, of another format, or holds other Python objects.
    """
    if not path.is_file():
        raise ValueError(f"weights {path} is not a file; give a .safetensors, .pt or .pth file")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"weights {path} has suffix {path.suffix!r}; it must be .safetensors, .pt or .pth")
    refuse_placeholder(path, "weights")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_IGNORED)):
            warnings.simplefilter("ignore")  # formats that torch warns of are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"weights {path} cannot be read as tensors: {_why(path, error)}") from error
    return content if isinstance(content, dict) else {"": content}


def refuse_placeholder(path: Path, what: str) -> None:
    """Raise ValueError if the file is an HTML page or a git-lfs pointer instead of `what`."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{what} {path} is an HTML page: the download failed; download the file again")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{what} {path} is a git-lfs pointer, not the file: run `git lfs pull` in its repository")


def misfit(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> str:
    """Return in one line why `given` does not fit `wanted`; "" if it fits."""
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
    return "; ".join(f"{kind} {_shortened(names)}" for kind, names in kinds if names)


def _fill(net: nn.Module, weights: dict[str, torch.Tensor], path: str | Path, name: str) -> None:
    wrong = misfit(net.state_dict(), weights)
    if wrong:
        raise ValueError(
            f"weights {path} do not fit {name}: {wrong}; check the name, embedding_size, image_size and width"
        )
    net.load_state_dict(weights, strict=False)  # compared above, except step counters, which old files lack


def _without_prefixes(key: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key


def _why(path: Path, error: Exception) -> str:
    """Return why a file cannot be read; PyTorch's own message suggests running the code in it."""
    if path.suffix == ".safetensors":
        return " ".join(str(error).split()) or type(error).__name__
    if path.stat().st_size == 0:
        return "it is empty"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                return "it is a TorchScript archive; save the state_dict() of the module in it"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds Python objects, such as a whole pickled model; save the model's state_dict() instead"
    return "it is corrupt, or not written by torch.save"


def _shortened(names: list[str]) -> str:
    rest = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
