"""Presets: published recipes to start from; the counts of a dataset always come from its dataset.json."""

import copy
import difflib

from rayface.values import Tree

# arcface_torch's recipe for CNNs (https://arxiv.org/abs/2203.15565): batch 1024 at lr .1, 20 epochs. Its scale and
# margin are the defaults of cosface and arcface. They are not set here, so that another margin or head has its own.
_CNN: Tree = {
    "backbone": {"name": "r50"},
    "head": {"margin": "cosface"},
    "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": 5.0},
    "schedule": {"name": "polynomial", "power": 1.0},
    "train": {"epochs": 20, "batch_size": 1024, "num_workers": 8},
}


def _cnn(name: str, **groups: Tree) -> Tree:
    preset = {**copy.deepcopy(_CNN), "name": name}
    for group, values in groups.items():
        preset.setdefault(group, {}).update(values)
    return preset


PRESETS: dict[str, Tree] = {
    "webface4m": _cnn("webface4m"),
    "webface12m": _cnn("webface12m"),
    "webface42m": _cnn(
        "webface42m",
        backbone={"name": "r100"},
        head={"sample_rate": 0.2},
        optim={"lr": 0.4},
        schedule={"warmup_epochs": 2},
        train={"batch_size": 4096, "num_workers": 32},
    ),
    "ms1mv3": _cnn("ms1mv3", head={"margin": "arcface"}),
    "glint360k": _cnn("glint360k", backbone={"name": "r100"}),
    # Small images, a narrow backbone and few epochs: minutes on a laptop's CPU.
    "mini": {
        "name": "mini",
        "data": {"image_size": 56, "shift": 3, "brightness": 0.2},
        "backbone": {"name": "mini", "embedding_size": 256, "dropout": 0.4},
        "head": {"margin": "cosface", "margin_value": 0.2, "scale": 24.0},
        "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "polynomial", "power": 1.0},
        "train": {"epochs": 40, "batch_size": 128, "num_workers": 2},
    },
    # For tests and for checking a setting: seconds.
    "debug": {
        "name": "debug",
        "data": {"image_size": 32, "window_images": 256},
        "backbone": {"name": "mini", "embedding_size": 64, "width": 0.5},
        "head": {"margin": "cosface", "margin_value": 0.1, "scale": 16.0},
        "optim": {"lr": 0.1},
        "train": {"epochs": 1, "batch_size": 32, "num_workers": 1, "log_every": 1},
    },
}


def preset_values(name: str) -> Tree:
    """Return a copy of the nested values of a preset.

    Raises:
        ValueError: the name is not a preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ValueError(f"preset: {name!r}: must be one of {', '.join(PRESETS)}{hint}")
    return copy.deepcopy(PRESETS[name])


# Peak rate of published recipes and the batch that it belongs to: sgd of arcface_torch's CNNs, adamw of its ViTs.
REFERENCE_RATES = {"sgd": (0.1, 1024), "adamw": (1e-3, 1024)}


def reference_rate(optimizer: str, batch_size: int) -> float:
    """Return the usual peak learning rate: by the linear rule above the recipe's batch, the recipe's own below it."""
    rate, batch = REFERENCE_RATES[optimizer]
    return rate * max(1.0, batch_size / batch)
