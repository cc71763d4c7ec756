"""Compare a core set with those of other methods."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from rayface.arrays import Bools, Floats, Ints
from rayface.config import PruneConfig
from rayface.curate.cosines import unit_blocks
from rayface.curate.partitions import Partition
from rayface.curate.prune.keep_ratio import UnreachableKeepError
from rayface.curate.prune.methods import baseline_settings, build_method
from rayface.curate.prune.result import SelectionFigures
from rayface.curate.prune.selection import Method, Selector, read_images, read_kept
from rayface.ray_tasks import map_unordered

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of all images, of the core set, and of baselines by name."""

    everything: SelectionFigures
    core_set: SelectionFigures
    baselines: dict[str, SelectionFigures]


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums of a partition: one row each for all images, the core set and every baseline; see `_cosine_sums`."""

    part: int
    sums: list[tuple[int, int, float, int]]


def fit_baselines(settings: PruneConfig, selector: Selector, keep: float) -> dict[str, Method]:
    """Return the methods to compare with, by name; one that cannot keep this share is left out, with a warning."""
    found: dict[str, Method] = {}
    for name in dict.fromkeys(["random", *settings.baselines]):
        if name == settings.method:
            continue
        try:
            found[name] = selector.fit(build_method(baseline_settings(settings, name, keep)), keep)
        except UnreachableKeepError as error:
            logger.warning("prune.baselines: %s is not compared: %s", name, error)
    return found


def compare(selector: Selector, method: Method, baselines: Mapping[str, Method]) -> Comparison:
    """Measure the core set of `method` and those of the baselines; one pass over all images."""
    folder = selector.folder_of(method)
    prepared = {name: other.prepare(selector.stats) for name, other in baselines.items()}

    def sums(numbered: tuple[int, Partition]) -> _Sums:
        torch.set_num_threads(1)
        images = read_images(*numbered)
        own = read_kept(folder, images.part)
        masks = [np.ones(len(own), bool), own]
        masks += [other.select(images, prepared[name]).kept for name, other in baselines.items()]
        return _Sums(
            part=images.part,
            sums=[
                (*_cosine_sums(images.embeddings, images.offsets, mask), int(np.count_nonzero(own & mask)))
                for mask in masks
            ],
        )

    partitions = selector.stats.partitions
    parts = map_unordered(sums, list(enumerate(partitions.partitions)), "compare methods", rows=partitions.num_rows)
    # In the order of the partitions, so that rounding is deterministic.
    totals = np.sum([result.sums for result in sorted(parts, key=lambda result: result.part)], axis=0)
    everything, core_set, *others = [
        SelectionFigures(
            faces=int(faces), mean_cosine=float(cosines / max(1, paired)), shared=float(shared / max(1, faces))
        )
        for faces, paired, cosines, shared in totals
    ]
    return Comparison(everything=everything, core_set=core_set, baselines=dict(zip(baselines, others, strict=True)))


def _cosine_sums(embeddings: Floats, offsets: Ints, mask: Bools) -> tuple[int, int, float]:
    """Return of the images in mask: their number, those with others of their identity, and the sum of mean cosines.

    Within n unit vectors f, the cosines of all pairs add up to |sum f|^2 - n.
    """
    identity = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    sums = np.zeros((len(offsets) - 1, embeddings.shape[1]))
    done = 0
    for units in unit_blocks(embeddings):
        here = slice(done, done + len(units))
        done += len(units)
        np.add.at(sums, identity[here][mask[here]], units[mask[here]])
    count = np.bincount(identity[mask], minlength=len(sums))
    pairs = np.einsum("id,id->i", sums, sums) - count
    several = count > 1
    return int(count.sum()), int(count[several].sum()), float((pairs[several] / (count[several] - 1)).sum())
