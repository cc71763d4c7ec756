"""Verification accuracy while training: the pairs' images are shared among the ranks."""

from itertools import pairwise

import torch
from torch import nn

from rayface.config import Config
from rayface.evaluation.pairs import embed_images, load_pairs, pair_result
from rayface.evaluation.verification import pair_scores, roc_of, thinned
from rayface.training.distributed import World, average_buffers, gather_rows
from rayface.training.recovery.watchdog import Watchdog
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values


class Evaluation:
    """The pairs of evaluate.pairs, if there are any, and the last result on them.

    Attributes:
        result: of the last run, as `evaluate_pairs` returns it; empty on ranks other than 0.
    """

    def __init__(self, config: Config, run: RunDirectory, world: World, *, bf16: bool) -> None:
        self._config, self._run, self._world, self._bf16 = config, run, world, bf16
        self._pairs = None
        if config.evaluate.pairs is not None and config.evaluate.data:
            size = config.data.image_size
            self._pairs = load_pairs(config.evaluate.pairs, config.evaluate.data, image_size=size)
        self.result: Values = {}

    def run(self, backbone: nn.Module, step: int, watchdog: Watchdog) -> float | None:
        """Evaluate and write evaluation.json; the accuracy on rank 0, None elsewhere or without pairs.

        Args:
            watchdog: told of all progress: the other ranks wait while rank 0 scores.
        """
        if self._pairs is None:
            return None
        world = self._world
        watchdog.at("evaluate", step)
        average_buffers(backbone, world)
        n = len(self._pairs.images)
        bounds = [rank * n // world.size for rank in range(world.size + 1)]
        own = embed_images(
            backbone,
            self._pairs.images[bounds[world.rank] : bounds[world.rank + 1]],
            batch_size=self._config.evaluate.batch_size,
            device=world.device,
            amp="bf16" if self._bf16 else None,
            done=watchdog.alive,
        )
        counts = [last - first for first, last in pairwise(bounds)]
        embeddings = gather_rows(torch.from_numpy(own).to(world.device), counts, world).cpu().numpy()
        if world.rank != 0:
            watchdog.at("checkpoint", step)  # past rank 0, which scores alone
            return None
        watchdog.at("score", step)
        distance, cosine = pair_scores(embeddings, self._pairs.a, self._pairs.b, watchdog.alive)
        self.result = pair_result(distance, cosine, self._pairs)
        far, tar, _ = roc_of(cosine, self._pairs.is_same)
        self._run.write_evaluation({**self.result, "step": step, "roc": thinned(far, tar)})
        return float(self.result["accuracy_mean"])
