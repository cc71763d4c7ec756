"""Parity of two whole training steps: augmentation, backbone, head and optimizer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.errors import as_good, relative_error
from rayface.bench.gpu.parity_backbones import tf32
from rayface.bench.gpu.parity_heads import Repeatability, SameRows
from rayface.bench.gpu.training_step import StepSetting, TrainingStep
from rayface.data.images import augment

_STEPS = 2
_FLOORS = {False: 1e-2, True: 5e-2}  # of fp32 and bf16: two steps of a deep net amplify rounding
SETTING = StepSetting(net="mini", num_classes=2000, batch_size=32, image_size=56, embedding_size=128, bf16=False)
MINI = replace(SETTING, num_classes=60, batch_size=16, image_size=32, embedding_size=32)


@dataclass(frozen=True, kw_only=True)
class StepErrors(Measured):
    """Relative errors against float64, of the device and of the CPU in the same types."""

    loss: float
    backbone: float
    """Of the movement of its weights in two steps."""
    centers: float
    cpu_loss: float
    cpu_backbone: float
    cpu_centers: float


@dataclass(frozen=True)
class StepTrace:
    """What two steps did, in float64 on the CPU."""

    losses: Tensor
    backbone: Tensor
    centers: Tensor

    def errors(self, exact: "StepTrace") -> list[float]:
        """Return the relative errors of each part."""
        pairs = zip(vars(self).values(), vars(exact).values(), strict=True)
        return [relative_error(mine, wanted) for mine, wanted in pairs]


def cases(kit: Kit) -> Iterator[Case]:
    """Yield the settings of training that use the device in different ways."""
    base = MINI if kit.mini else SETTING
    variants = {
        "fp32, sgd": base,
        "bf16, sgd": replace(base, bf16=True),
        "fp32, adamw": replace(base, optimizer="adamw", rate=1e-3),
        "fp32, host memory": replace(base, host_memory=True),
    }
    for name, setting in variants.items():
        yield Case(name=f"two steps, {name}", run=partial(compare, setting, kit.device), seconds=6)
    yield Case(name="two steps repeated, bf16", run=partial(repeat, variants["bf16, sgd"], kit.device), seconds=3)


def compare(setting: StepSetting, device: str) -> StepErrors:
    """Compare two steps on the device and on the CPU with those in float64."""
    wanted = trace(replace(setting, exact=True, bf16=False, host_memory=False), "cpu")
    with tf32(False):
        on_device = trace(setting, device).errors(wanted)
    on_cpu = trace(setting, "cpu").errors(wanted)
    return StepErrors(
        passed=as_good(on_device, on_cpu, _FLOORS[setting.bf16]),
        loss=on_device[0],
        backbone=on_device[1],
        centers=on_device[2],
        cpu_loss=on_cpu[0],
        cpu_backbone=on_cpu[1],
        cpu_centers=on_cpu[2],
    )


def repeat(setting: StepSetting, device: str) -> Repeatability:
    """Run two steps twice. cuDNN and PyTorch's own operations may differ from run to run, so this is only shown."""
    first, second = (trace(setting, device) for _ in range(2))
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    return Repeatability(largest_difference=largest, note="equal to the bit" if largest == 0 else "not equal")


def trace(setting: StepSetting, device: str) -> StepTrace:
    """Train two steps on drawn images, augmented as in training."""
    step = TrainingStep(setting, device, SameRows)
    before = _weights(step), step.head.centers.double().cpu().clone()
    losses = []
    for number in range(_STEPS):
        images, labels = _batch(setting, device, number)
        losses.append(step.run(images, labels))
    return StepTrace(
        losses=torch.tensor(losses, dtype=torch.float64),
        backbone=_weights(step) - before[0],
        centers=step.head.centers.double().cpu() - before[1],
    )


def _weights(step: TrainingStep) -> Tensor:
    return torch.cat([parameter.detach().double().cpu().ravel() for parameter in step.backbone.parameters()])


def _batch(setting: StepSetting, device: str, number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    size, count = setting.image_size, setting.batch_size
    raw = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(setting.num_classes, (count,), generator=generator)
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    images = augment(raw.to(device), slice(0, count), count, generator, flip=True, shift=4, **jitter)
    images = images.to(setting.dtype).contiguous(memory_format=torch.channels_last)
    return images, labels.to(device)
