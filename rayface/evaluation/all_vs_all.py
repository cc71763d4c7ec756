"""All-vs-all verification: TAR at FAR over every pair of a labelled set, streamed in tiles."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import identities_of
from rayface.evaluation.extremes import Extremes
from rayface.evaluation.identification import allowed_false_accepts, checked_rates
from rayface.evaluation.pair_tiles import SCREEN_ERROR, PairTiles
from rayface.evaluation.tail_rates import TailRates
from rayface.evaluation.tails import Bracket, Multiset

ALL = "all"
_SAMPLE_BLOCKS = 16  # largest number of random blocks of pairs that place the brackets
_SAMPLE_SIDE = 2048  # images per side of a block
_MOST_NEAR = 0.003  # largest fraction of pairs that is computed twice in screened tiles
_MARGIN = 0.01  # half the width of a bracket, as a fraction of its rank; a miss multiplies it by 8


def all_vs_all(
    embeddings: ArrayLike,
    labels: ArrayLike,
    fars: ArrayLike | Sequence[float],
    groups: ArrayLike | None = None,
    *,
    device: str = "cpu",
) -> dict[Hashable, list[float]]:
    """Return the true acceptance rate at given false acceptance rates over all unordered pairs of images.

    Exact: the thresholds are those of `tar_at_far` on the cosines of all pairs. Computed in float32 (float64 for
    float64 embeddings) in one pass over the pairs, and one more per group over its own pairs. Pairs of equal images may
    differ in the last bits of their cosines: they need not tie.

    Args:
        embeddings: (N, D), raw or normalised; an array or a memory map.
        labels: (N,) identity of each image.
        fars: (F,) rates in [0, 1].
        groups: (N,) group of each image, numbers or strings; None or NaN: in no group. The pairs of a group lie inside
            it; "all" has all pairs, across groups too.
        device: device of the matrix products.

    Returns:
        {"all": [tar, ...], group: [tar, ...]}; NaN for a group without genuine or without impostor pairs.

    Raises:
        ValueError: shapes do not fit, an embedding is zero or not finite, a label is missing, a rate is outside [0, 1],
            there are no genuine or no impostor pairs, or a group is named "all".
    """
    parts = dict(group_rows(groups, np.size(labels)))
    if ALL in parts:
        raise ValueError(f"groups: {ALL!r} is the name of the pairs of all groups: rename the group")
    found = tail_rates(embeddings, labels, fars, device=device)
    if not found.num_genuine or not found.num_impostor:
        raise ValueError(
            f"labels give {found.num_genuine} genuine and {found.num_impostor} impostor pairs, there must be at least "
            "1 of each"
        )
    rates: dict[Hashable, list[float]] = {ALL: found.tar.tolist()}
    for name, rows in parts.items():
        rates[name] = tail_rates(embeddings, labels, fars, rows=rows, device=device).tar.tolist()
    return rates


def group_rows(groups: ArrayLike | None, num_images: int) -> Iterator[tuple[Hashable, NDArray[np.int64]]]:
    """Yield each group, in sorted order, with the rows of its images; None and NaN are no group.

    Raises:
        ValueError: the number of groups is not that of the images, or they are of several types.
    """
    if groups is None:
        return
    given = np.asarray(groups)
    if given.shape != (num_images,):
        raise ValueError(f"groups have shape {given.shape}, there must be one per image: ({num_images},)")
    rows = np.flatnonzero(~pd.isna(given))
    if not len(rows):
        return
    names, place = np.unique(identities_of(given[rows], "groups")[0], return_inverse=True)
    for number, name in enumerate(names.tolist()):
        yield name, rows[place == number]


def tail_rates(
    embeddings: ArrayLike,
    labels: ArrayLike,
    fars: ArrayLike | Sequence[float],
    *,
    rows: NDArray[np.int64] | None = None,
    device: str = "cpu",
    done: Callable[[int], None] = lambda pairs: None,
    extremes: Extremes | None = None,
) -> TailRates:
    """Return thresholds and rates of `all_vs_all` over the pairs of some rows, all of them by default.

    A random sample of the pairs places a bracket around every threshold. One pass counts the impostors above each
    bracket and keeps those inside it; if a count shows that a bracket misses its threshold, the pass is repeated with
    wider ones. Where the device multiplies bfloat16 faster and few pairs lie above the lowest bracket, tiles of
    impostors are screened: products of rounded embeddings select the pairs whose scores are then computed in float32.

    Args:
        rows: rows of `embeddings` to compare.
        done: called with the number of pairs after every tile.
        extremes: takes the worst pairs, by place in `PairTiles.order`.

    Raises:
        ValueError: see `all_vs_all`; no error if there are no genuine or no impostor pairs.
    """
    rates = checked_rates(fars)
    pairs = PairTiles.of(embeddings, labels, rows=rows, device=device)
    if not pairs.num_genuine or not pairs.num_impostor:
        none = np.full(len(rates), np.nan)
        return TailRates(tar=none, threshold=none, num_genuine=pairs.num_genuine, num_impostor=pairs.num_impostor)
    allowed = allowed_false_accepts(rates, pairs.num_impostor)
    wanted = sorted({int(count) for count in allowed if count < pairs.num_impostor})
    thresholds, genuine = _thresholds(pairs, wanted, done, extremes) if wanted else ({}, Multiset())
    of_rate = [thresholds.get(int(count), -np.inf) for count in allowed]
    return TailRates(
        tar=np.array([1.0 if t == -np.inf else genuine.above(t) / pairs.num_genuine for t in of_rate]),
        threshold=np.array(of_rate),
        num_genuine=pairs.num_genuine,
        num_impostor=pairs.num_impostor,
    )


def _thresholds(
    pairs: PairTiles, wanted: Sequence[int], done: Callable[[int], None], extremes: Extremes | None
) -> tuple[dict[int, float], Multiset]:
    """Return the threshold of each number of false acceptances, and the genuine scores above the lowest bracket."""
    ranks = list(wanted)
    if extremes is not None:  # its bracket holds the worst
        ranks.append(min(extremes.count, pairs.num_impostor) - 1)
    margin = _MARGIN
    while True:
        brackets, screened = _brackets(pairs, ranks, margin)
        lowest = min(bracket.low for bracket in brackets)
        genuine = Multiset()
        if extremes is not None:
            extremes.clear()
        for tile in pairs.tiles(screened=screened):
            same = tile.take_genuine()
            genuine.add(same.scores[same.scores > lowest].cpu().numpy())
            if extremes is not None:
                extremes.add(tile, same, lowest)
            # counted on the host: on an accelerator every number of a count would make it wait
            _count(tile.above(lowest).cpu().numpy(), brackets)
            done(tile.num_pairs)
        if all(bracket.is_hit() for bracket in brackets):
            return {bracket.rank: bracket.threshold() for bracket in brackets}, genuine
        margin *= 8


def _count(tail: NDArray[np.floating], brackets: Sequence[Bracket]) -> None:
    for bracket in brackets:
        inside = tail[tail > bracket.low]
        if bracket.high < np.inf:
            is_above = inside > bracket.high
            bracket.above += int(np.count_nonzero(is_above))
            inside = inside[~is_above]
        bracket.inside.add(inside)


def _brackets(pairs: PairTiles, ranks: Sequence[int], margin: float) -> tuple[list[Bracket], bool]:
    """Return a bracket (low, high] around the score at each rank, and whether to screen the tiles for the lowest."""
    if pairs.num_impostor <= 4 * _SAMPLE_SIDE**2 or margin > 1:
        return [Bracket(rank=rank, low=-np.inf, high=np.inf) for rank in ranks], False
    blocks = min(_SAMPLE_BLOCKS, max(1, pairs.num_impostor // (64 * _SAMPLE_SIDE**2)))
    sample = np.sort(pairs.sample(blocks, _SAMPLE_SIDE))[::-1]
    found = []
    for rank in ranks:
        place = rank / pairs.num_impostor * len(sample)
        slack = margin * place + 100 * margin * (16 * place**0.5 + 64)
        first, last = int(place - slack) - 1, int(place + slack) + 1
        high = float(sample[first]) if first >= 0 else np.inf
        found.append(Bracket(rank=rank, low=float(sample[last]) if last < len(sample) else -np.inf, high=high))
    near = np.count_nonzero(sample > min(bracket.low for bracket in found) - SCREEN_ERROR)
    return found, pairs.can_screen and bool(near <= _MOST_NEAR * len(sample))
