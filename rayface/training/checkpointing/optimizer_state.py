"""The backbone's optimizer state in a checkpoint, by parameter name: "optimizer.state.PARAMETER.KEY"."""

import re

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rayface.storage import AnyPath

PREFIX = "optimizer.state."
_NUMBERED = re.compile(r"optimizer\.(\d+)\.(\w+)")  # older checkpoints: by the parameter's index


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "optimizer.state.PARAMETER.KEY".

    Args:
        module: module of the optimizer's parameters, whose names are used.
    """
    return {
        f"{PREFIX}{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load tensors named as by `optimizer_state`.

    Raises:
        ValueError: a tensor of a parameter that the optimizer does not have.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for saved, value in tensors.items():
        name, _, key = saved.removeprefix(PREFIX).rpartition(".")
        if name not in numbers:
            raise ValueError(f"optimizer state of {name}: the backbone has no such trainable parameter")
        parameter = parameters[numbers[name]]
        if value.shape == parameter.shape:
            # Fused optimizers iterate over memory: a buffer needs the memory format of its parameter (channels_last).
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(numbers[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def by_name(folder: AnyPath, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's optimizer tensors by parameter name.

    Older checkpoints number the parameters: a number is the index among the trainable parameters in the order of the
    saved backbone, which the checkpoint records and which may differ from that of `module`.

    Raises:
        ValueError: the tensors are numbered, and the saved backbone has other parameters.
    """
    numbered = {saved: found for saved in tensors if (found := _NUMBERED.fullmatch(saved))}
    if not numbered:
        return tensors
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    order = [name for name in _saved_order(folder) if name in trainable]
    renamed = {}
    for saved, value in tensors.items():
        number, key = int(numbered[saved][1]), numbered[saved][2]
        fits = len(order) == len(trainable) and number < len(order)
        if not fits or (value.ndim and value.shape != trainable[order[number]].shape):
            raise ValueError(
                f"checkpoint {folder}: {saved} of shape {tuple(value.shape)} fits no parameter of this backbone: the "
                "optimizer state of another backbone cannot be loaded; start a new run with "
                "backbone.weights"
            )
        renamed[f"{PREFIX}{order[number]}.{key}"] = value
    return renamed


def _saved_order(folder: AnyPath) -> list[str]:
    """Return the names of the backbone's tensors in the order in which they were saved."""
    from rayface.models.store_files import reader_of  # slow: only for older checkpoints

    # The tensors' metadata is ordered by the ranks that wrote them, the planner data by the state.
    planned = reader_of(folder).read_metadata().planner_data or {}
    return [name.removeprefix("backbone.") for name in planned if name.startswith("backbone.")]
