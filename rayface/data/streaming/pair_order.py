"""Sample order of steps that consist of pairs: two images of one identity, or also any two images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rayface.data.streaming.label_groups import LabelGroups
from rayface.data.streaming.sample_order import Ids, SampleOrder


@dataclass(frozen=True, kw_only=True)
class PairOrder(SampleOrder):
    """Order of the pairs of a training run; batch_size B counts pairs, `window` returns both images of each in turn.

    *Identity pairs* are two different images of an identity (twice the same if it has only one). All identities are
    equally likely: they follow a permutation, and a new one when all were used. *Instance pairs* are two consecutive
    images of a plain order of all images. As for single images, the position is one number, the step.

    Source: the two loaders of F2C (arXiv 2105.10375) and the pairs of DCQ (arXiv 2105.11113).

    Args:
        num_identities: number of identities with images.
        with_instances: the first half of a batch's rows, rounded up, are identity pairs, the others instance pairs;
            False: all are identity pairs.

    Raises:
        ValueError: the dataset is smaller than one batch, or a batch too small for both kinds.
    """

    images_per_row: ClassVar[int] = 2
    needs_groups: ClassVar[bool] = True

    num_identities: int
    with_instances: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.with_instances and self.batch_size < 2:
            raise ValueError("train.batch_size: 1: must be at least 2: one identity pair and one instance pair")

    @property
    def identity_pairs(self) -> int:
        """Identity pairs of a step."""
        return -(-self.batch_size // 2) if self.with_instances else self.batch_size

    def window(self, number: int, groups: LabelGroups | None = None) -> Ids:
        """Return the positions in the index of a window's images, (steps, 2 B): the two of each pair in turn.

        Raises:
            ValueError: groups are missing, or of another dataset.
        """
        if groups is None or len(groups) != self.num_identities:
            raise ValueError(f"an order of pairs needs the images of its {self.num_identities} identities")
        steps = self.steps_of(number)
        pairs = self._identity_pairs(number, steps, groups)
        if self.with_instances:
            pairs = np.concatenate([pairs, self._instance_pairs(steps)], axis=1)
        return pairs.reshape(len(steps), -1)

    def _identity_pairs(self, number: int, steps: range, groups: LabelGroups) -> Ids:
        """Return (steps, pairs, 2)."""
        drawn = np.arange(steps.start * self.identity_pairs, steps.stop * self.identity_pairs)
        passes, places = np.divmod(drawn, self.num_identities)
        identity = np.empty(len(drawn), np.int64)
        for each in np.unique(passes):
            identity[passes == each] = _identity_order(self.num_identities, self.seed, int(each))[
                places[passes == each]
            ]
        first, sizes = groups.starts[identity], np.diff(groups.starts)[identity]
        generator = np.random.default_rng([self.seed, number, 2])
        one = generator.integers(0, sizes)
        other = (one + 1 + generator.integers(0, np.maximum(sizes - 1, 1))) % sizes
        pairs = groups.positions[np.stack([first + one, first + other], axis=1)]
        return pairs.astype(np.int64).reshape(len(steps), -1, 2)

    def _instance_pairs(self, steps: range) -> Ids:
        """Return (steps, pairs, 2)."""
        order = SampleOrder(
            num_samples=self.num_samples,
            batch_size=2 * (self.batch_size - self.identity_pairs),
            seed=self.seed,
            chunk_images=self.chunk_images,
            window_images=self.window_images,
        )
        windows = {window: order.window(window) for window in {order.window_of(step)[0] for step in steps}}
        batches = [windows[window][place] for window, place in map(order.window_of, steps)]
        return np.stack(batches).reshape(len(steps), -1, 2)


@lru_cache(maxsize=2)
def _identity_order(num_identities: int, seed: int, number: int) -> NDArray[np.int32]:
    """Return the order of the identities in a pass over all of them, counted over the whole run."""
    order = np.arange(num_identities, dtype=np.int32)
    np.random.default_rng([seed, number, 3]).shuffle(order)
    return order
