"""The backbone's optimizer state in a checkpoint, by parameter name: "optimizer.state.PARAMETER.KEY"."""

import re
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

PREFIX = "optimizer.state."
_NUMBERED = re.compile(r"optimizer\.(\d+)\.(\w+)")  # as checkpoints had it before: by the parameter's place


def optimizer_state(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "optimizer.state.PARAMETER.KEY".

    Args:
        module: has the optimizer's parameters, under the names to save them by.
    """
    return {
        f"{PREFIX}{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load tensors that are named as `optimizer_state` names them.

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
            # Fused optimizers walk through memory: a buffer must be laid out as its parameter (channels_last).
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(numbers[name], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def by_name(folder: Path, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's optimizer tensors by parameter name, also from older checkpoints, which number them.

    Older checkpoints number the parameters. A number stands for a parameter's place among the trainable ones in the
    order of the backbone that was saved, which the checkpoint keeps; the order of `module` may be another one.

    Raises:
        ValueError: numbered tensors, and the backbone that was saved has other parameters.
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
                f"checkpoint {folder}: {saved} is of shape {tuple(value.shape)}, and its number fits no parameter of "
                "this backbone: the optimizer state of another net cannot be loaded; start a new run with "
                "backbone.weights"
            )
        renamed[f"{PREFIX}{order[number]}.{key}"] = value
    return renamed


def _saved_order(folder: Path) -> list[str]:
    """Return the names of the backbone's tensors in the order in which they were saved."""
    # The tensors' own metadata is in the order of the ranks that wrote them; this is in that of the state.
    planned = dcp.FileSystemReader(folder).read_metadata().planner_data or {}
    return [name.removeprefix("backbone.") for name in planned if name.startswith("backbone.")]
