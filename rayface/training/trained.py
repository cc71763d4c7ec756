"""What a rank trains: its copy of the backbone, its part of the head, the optimizer, and the average of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from rayface.config import Config
from rayface.heads import Head
from rayface.models.model_files import save_model
from rayface.training.builders import build_config_backbone, build_config_head, load_start
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World, average_buffers
from rayface.training.optim import build_optimizer

AVERAGE = "ema"


class WeightAverage(AveragedModel):
    """Running average of the weights, `d average + (1 - d) weights` after each step.

    d is `decay`, and (1 + n) / (10 + n) after n steps where that is less, so that the average forgets the initial
    weights also in a short run. After the first step the average is the weights. Batch statistics are those of the
    backbone.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__(net)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average, as the base class does, which starts a kernel for every buffer and waits for the device."""
        count = int(self.n_averaged)  # on the CPU
        average: list[Tensor] = [*self.module.parameters()]
        weights: list[Tensor] = [*model.parameters()]
        if count:
            torch._foreach_lerp_(average, weights, 1 - min(self._decay, (1 + count) / (10 + count)))
        else:
            torch._foreach_copy_(average, weights)
        # One type at a time: other lists are copied tensor by tensor.
        for dtype in {buffer.dtype for buffer in model.buffers()}:
            own, new = ([b for b in net.buffers() if b.dtype == dtype] for net in (self.module, model))
            torch._foreach_copy_(own, new)
        self.n_averaged += 1


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained modules of a rank.

    Attributes:
        average: running average of the backbone's weights (train.ema); None: there is none.
    """

    backbone: nn.Module
    head: Head
    optimizer: Optimizer
    average: WeightAverage | None = None

    def start(self, config: Config) -> None:
        """Load backbone.weights, if set, and let the other networks begin as the backbone.

        Raises:
            ValueError: no such file, or weights that do not fit.
        """
        load_start(self.backbone, config)
        self.head.start()
        if self.average is not None:
            self.average.module.load_state_dict(self.backbone.state_dict())

    def update_average(self) -> None:
        """Move the average after a step of the optimizer."""
        if self.average is not None:
            self.average.update_parameters(self.backbone)

    @property
    def exported(self) -> tuple[str, nn.Module]:
        """The network to evaluate and to export, and its name in a checkpoint: "backbone", "head.NAME" or "ema"."""
        if self.average is not None:
            return AVERAGE, self.average.module
        name = self.head.exported
        return ("backbone", self.backbone) if name == "backbone" else (f"head.{name}", self.head.networks()[name])

    def save(self, folder: Path, config: Config, dataset: DatasetFacts, metrics: Mapping[str, object]) -> None:
        """Write the exported network as a model, with what it was trained on and its metrics."""
        network, module = self.exported
        save_model(
            folder,
            module,
            network=network,
            name=config.backbone.name,
            backbone_args={"width": config.backbone.width},
            image_size=config.data.image_size,
            embedding_size=config.backbone.embedding_size,
            licence=dataset.licence,
            training_digest=dataset.digest,
            metrics=metrics,
        )

    def average_buffers(self, world: World) -> None:
        """Average the batch statistics of all networks over the ranks; one all-reduce for each network."""
        averages = [] if self.average is None else [self.average.module]
        for net in (self.backbone, *self.head.networks().values(), *averages):
            average_buffers(net, world)


def build_trained(config: Config, num_classes: int, world: World) -> Trained:
    """Build backbone, head and optimizer, with random weights from train.seed."""
    torch.manual_seed(config.train.seed)
    backbone = build_config_backbone(config).to(world.device)
    backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = build_config_head(config, num_classes, world, backbone)
    optim = config.optim
    rates = {"lr": optim.lr, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
    return Trained(
        backbone=backbone,
        head=head,
        optimizer=build_optimizer(optim.name, backbone, **rates),
        average=None if config.train.ema is None else WeightAverage(backbone, config.train.ema),
    )
