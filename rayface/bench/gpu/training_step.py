"""A training step on one device as `rayface train` does it, on images in memory: backbone, head and optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayface.backbones import build_backbone
from rayface.heads import CosFace
from rayface.heads.partial_fc import PartialFC
from rayface.precision import autocast
from rayface.training.optim import build_optimizer

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of the backbone; the defaults of the head
LOGIT_MEMORY = 2**29  # the default of head.logit_memory


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """What is trained, and how."""

    net: str
    num_classes: int
    batch_size: int
    image_size: int = 112
    embedding_size: int = 512
    sample_rate: float = 0.1
    optimizer: str = "sgd"
    bf16: bool = True
    """Of the backbone under autocast, and of the head's products."""
    storage_dtype: str = "fp32"
    kernel: str = "chunked"
    """Of the head."""
    compiled: bool = False
    channels_last: bool = True
    host_memory: bool = False
    exact: bool = False
    """Everything in float64."""
    rate: float = 0.02

    @property
    def dtype(self) -> torch.dtype:
        """The type of images, weights and embeddings outside autocast."""
        return torch.float64 if self.exact else torch.float32


class TrainingStep:
    """The weights of a run on one device, and its steps.

    Args:
        setting: what is trained; weights are drawn from seed 0 on the CPU, so that all devices begin with the same.
        head: class of the head.
    """

    def __init__(self, setting: StepSetting, device: str, head: type[PartialFC] = PartialFC) -> None:
        self.setting, self.device = setting, torch.device(device)
        torch.manual_seed(0)
        net = build_backbone(setting.net, embedding_size=setting.embedding_size, image_size=setting.image_size)
        self.backbone = self.laid_out(net.to(self.device, setting.dtype))
        self.forward: nn.Module = torch.compile(self.backbone) if setting.compiled else self.backbone  # type: ignore[assignment]
        self.head = head(
            setting.embedding_size,
            setting.num_classes,
            CosFace(),
            sample_rate=setting.sample_rate,
            optimizer=setting.optimizer,
            storage_dtype="fp64" if setting.exact else setting.storage_dtype,
            compute_dtype="bf16" if setting.bf16 else "fp32",
            kernel=setting.kernel,
            logit_memory=LOGIT_MEMORY,
            host_memory=setting.host_memory,
            device=self.device,
        )
        self.optimizer = build_optimizer(
            setting.optimizer, self.backbone, lr=setting.rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def laid_out(self, value: nn.Module) -> nn.Module:
        """Return the net in the memory format of the setting."""
        return value.to(memory_format=torch.channels_last) if self.setting.channels_last else value  # type: ignore[call-overload]

    def run(self, images: Tensor, labels: Tensor, mark: Callable[[], None] = lambda: None) -> float:
        """Train on a batch and return its loss; `mark` is called after forward, loss, backward and update.

        Raises:
            ArithmeticError: a loss or a gradient that is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.head.prefetch(labels)
        with autocast(self.device, self.setting.bf16):
            embeddings = self.forward(images).to(self.setting.dtype)
        mark()
        loss = self.head.loss(embeddings, labels)
        mark()
        loss.backward()
        mark()
        value = float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), math.inf)
        if not math.isfinite(value) or not math.isfinite(norm):
            raise ArithmeticError(f"loss {value}, norm of the gradient {norm}")
        self.optimizer.step()
        self.head.step(self.setting.rate)
        mark()
        return value

    def images(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return a batch of noise on the device: images in [-1, 1] in the net's memory format, and labels."""
        setting, generator = self.setting, torch.Generator().manual_seed(seed)
        shape = (setting.batch_size, 3, setting.image_size, setting.image_size)
        images = (torch.rand(shape, generator=generator) * 2 - 1).to(self.device, setting.dtype)
        labels = torch.randint(setting.num_classes, shape[:1], generator=generator).to(self.device)
        if setting.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels
