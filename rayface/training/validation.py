"""Validation during training: the images of the protocol are distributed over the ranks."""

from itertools import pairwise

import torch
from torch import nn

from rayface.config import Config
from rayface.evaluation.protocols import EvaluationProtocol, protocol_class
from rayface.models.forward import embed_images
from rayface.progress import phase
from rayface.training.distributed import World, average_buffers, gather_rows
from rayface.training.recovery.watchdog import Watchdog
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values


class Evaluation:
    """The configured protocol of `evaluate`, if any, and its last result.

    Attributes:
        result: figures of the last validation; empty on ranks other than 0.
    """

    def __init__(self, config: Config, run: RunDirectory, world: World, *, bf16: bool) -> None:
        self._config, self._run, self._world, self._bf16 = config, run, world, bf16
        self._protocol: EvaluationProtocol | None = None
        if (protocol := protocol_class(config.evaluate)) is not None:
            self._protocol = protocol.open(config.evaluate, image_size=config.data.image_size)
        self.result: Values = {}

    def run(self, backbone: nn.Module, step: int, watchdog: Watchdog) -> float | None:
        """Validate and write evaluation.json; return the main figure on rank 0, None elsewhere or without a protocol.

        Args:
            watchdog: notified of all progress: the other ranks wait while rank 0 scores.
        """
        if self._protocol is None:
            return None
        with phase("validate", rows=self._protocol.num_images):
            return self._validate(self._protocol, backbone, step, watchdog)

    def _validate(
        self, protocol: EvaluationProtocol, backbone: nn.Module, step: int, watchdog: Watchdog
    ) -> float | None:
        world = self._world
        watchdog.at("evaluate", step)
        average_buffers(backbone, world)
        n = protocol.num_images
        bounds = [rank * n // world.size for rank in range(world.size + 1)]
        own = embed_images(
            backbone,
            protocol.read_images(bounds[world.rank], bounds[world.rank + 1]),
            batch_size=self._config.evaluate.batch_size,
            device=world.device,
            amp="bf16" if self._bf16 else None,
            done=watchdog.alive,
        )
        counts = [last - first for first, last in pairwise(bounds)]
        embeddings = gather_rows(torch.from_numpy(own).to(world.device), counts, world).cpu().numpy()
        if world.rank != 0:
            watchdog.at("checkpoint", step)  # this rank is done and waits for rank 0, which scores
            return None
        watchdog.at("score", step)
        scored = protocol.score(embeddings, watchdog.alive)
        self.result = scored.figures()
        self._run.write_evaluation({**scored.as_dict(), "step": step})
        return scored.main_figure
