"""Full precision for the last layers of a network that runs under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(x: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context in which autocast is off for the device of `x`.

    Margins depend on the third decimal of a cosine, which bf16 does not resolve.
    """
    device = x.device.type
    # Only if autocast is on: exporters trace the plain graph, and the meta device has no autocast.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
