"""Validation during training: the images of every protocol are distributed over the ranks."""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from rayface.config import Config
from rayface.evaluation.embedding import embed_protocol
from rayface.evaluation.pair_scores import write_pair_scores
from rayface.evaluation.protocol import card_figures, evaluation_content, finite_numbers, scores_of
from rayface.evaluation.protocols import EvaluationProtocol, open_protocols
from rayface.models.embedded import Embedded
from rayface.progress import phase
from rayface.training.distributed import World, average_buffers, gather_rows
from rayface.training.recovery.watchdog import Watchdog
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values


class Evaluation:
    """The configured protocols of `evaluate`, if any, and their last results.

    Attributes:
        result: figures of the last validation: those of the first protocol, and, if there are several, all of them
            under "protocols". Empty on ranks other than 0.
        main_figures: main figure of each protocol, by name; empty likewise.
        all_figures: every finite figure of every protocol, by PROTOCOL/NAME, or NAME of a single protocol; likewise.
    """

    def __init__(self, config: Config, run: RunDirectory, world: World, *, bf16: bool) -> None:
        self._config, self._run, self._world, self._bf16 = config, run, world, bf16
        self._protocols = open_protocols(config.evaluate, image_size=config.data.image_size, join=config.data.join)
        self.result: Values = {}
        self.main_figures: dict[str, float] = {}
        self.all_figures: dict[str, float] = {}

    def run(self, backbone: nn.Module, step: int, watchdog: Watchdog) -> float | None:
        """Validate by every protocol and write evaluation.json.

        Args:
            watchdog: notified of all progress: the other ranks wait while rank 0 scores.

        Returns:
            The main figure of the first protocol on rank 0, NaN if it cannot be measured; None elsewhere or without a
            protocol.
        """
        if not self._protocols:
            return None
        with phase("validate", rows=sum(protocol.num_images for protocol in self._protocols.values())):
            watchdog.at("evaluate", step)
            average_buffers(backbone, self._world)
            embedded = {
                name: self._embedded(protocol, backbone, watchdog) for name, protocol in self._protocols.items()
            }
            if self._world.rank != 0:
                watchdog.at("checkpoint", step)  # this rank is done and waits for rank 0, which scores
                return None
            watchdog.at("score", step)
            results = {
                name: protocol.score(embedded[name], watchdog.alive) for name, protocol in self._protocols.items()
            }
        self.result = card_figures(results)
        self.main_figures = {name: result.main_figure for name, result in results.items()}
        figures = {name: result.figures() for name, result in results.items()}
        self.all_figures = finite_numbers(figures if len(figures) > 1 else next(iter(figures.values())))
        write_pair_scores(str(self._run.path), scores_of(results))
        self._run.write_evaluation({**evaluation_content(results), "step": step})
        return next(iter(self.main_figures.values()))

    def _embedded(self, protocol: EvaluationProtocol, backbone: nn.Module, watchdog: Watchdog) -> Embedded:
        """Embed this rank's part of the images, and return those of all ranks."""
        world, n = self._world, protocol.num_images
        bounds = [rank * n // world.size for rank in range(world.size + 1)]
        own = embed_protocol(
            protocol,
            backbone,
            np.arange(bounds[world.rank], bounds[world.rank + 1]),
            batch_size=self._config.evaluate.batch_size,
            device=world.device,
            flip=self._config.evaluate.flip,
            bf16=self._bf16,
            done=watchdog.alive,
        )
        counts = [last - first for first, last in pairwise(bounds)]
        rows = torch.from_numpy(np.column_stack(own)).to(world.device)
        every = gather_rows(rows, counts, world).cpu().numpy()
        return Embedded(every[:, :-1], every[:, -1])
