"""Open-set rates: TAR at FAR of scores, and 1:N identification of probes in a gallery."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import identities_of
from rayface.evaluation.verification import normalised

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_BLOCK = 1024  # probes per block
_TIE = 12  # decimals: of equal embeddings in two places, BLAS gives scores that differ in the last bits


def tar_at_far(genuine: ArrayLike, impostor: ArrayLike, fars: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """Return the true acceptance rate at given false acceptance rates.

    A pair is accepted if its score is *above* the threshold. The threshold of a FAR is the smallest impostor score at
    which the fraction of accepted impostors is at most that FAR (none if all may be accepted): of n impostors, the
    (k+1)st highest score, with the largest k such that k / n <= FAR. Impostors that tie with the threshold are
    rejected, and nothing is interpolated. A FAR below 1 / n allows no false acceptance.

    Args:
        genuine: scores of pairs of one person, any shape; higher is more similar.
        impostor: scores of pairs of two persons, any shape. Memory: one copy.
        fars: (F,) rates in [0, 1].

    Returns:
        (F,) float64, fraction of accepted genuine pairs.

    Raises:
        ValueError: no genuine or no impostor scores, a NaN score, or a rate outside [0, 1].
    """
    kept = np.asarray(genuine).ravel()
    refused = np.asarray(impostor).ravel()
    rates = checked_rates(fars)
    for name, scores in (("genuine", kept), ("impostor", refused)):
        if scores.size == 0 or scores.dtype.kind not in "fiu" or np.isnan(scores).any():
            raise ValueError(f"{name} has {scores.size} scores ({scores.dtype}): must be at least 1 number and no NaN")
    allowed = allowed_false_accepts(rates, refused.size)
    places = refused.size - 1 - allowed[allowed < refused.size]  # ascending order
    ordered = np.partition(refused, np.unique(places)) if places.size else refused
    tar = np.ones(len(rates))
    tar[allowed < refused.size] = [np.count_nonzero(kept > ordered[place]) / kept.size for place in places]
    return tar


def thresholds_at_far(impostor: ArrayLike, fars: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """Return the thresholds of `tar_at_far`: accepted is score > threshold; -inf where all may be accepted.

    Raises:
        ValueError: see `tar_at_far`.
    """
    scores = np.sort(np.asarray(impostor, np.float64).ravel())[::-1]
    rates = checked_rates(fars)
    if scores.size == 0 or np.isnan(scores).any():
        raise ValueError(f"impostor has {scores.size} scores, it must have at least 1 and no NaN")
    return np.append(scores, -np.inf)[allowed_false_accepts(rates, scores.size)]


def identify(
    probe: ArrayLike,
    probe_ids: ArrayLike,
    gallery: ArrayLike,
    gallery_ids: ArrayLike,
    ranks: Sequence[int] = RANKS,
    fpirs: ArrayLike | Sequence[float] = FPIRS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Identify probes in a gallery by the cosine of their embeddings.

    A probe's mate is a gallery entry with its id. Its rank is 1 plus the number of entries of other ids that score at
    least as high as its best mate, within 1e-12: ties count against the mate. The threshold of a false positive
    identification rate (FPIR) is that of `tar_at_far` on the highest score of each probe without a mate.

    Args:
        probe: (P, D) embeddings, raw or normalised.
        probe_ids: (P,) identities, numbers or strings.
        gallery: (G, D) embeddings, raw or normalised.
        gallery_ids: (G,) identities of the same type.
        ranks: R ranks from 1.
        fpirs: (F,) rates in [0, 1].

    Returns:
        (R,) fraction of the probes with a mate whose rank is at most the given one; and (F,) true positive
        identification rate (TPIR): the fraction of the probes with a mate whose mate is first and scores above the
        threshold. TPIR is NaN if all probes have a mate, and all is NaN if none has one.

    Raises:
        ValueError: shapes do not fit, an embedding is zero or not finite, ids are missing or of two types, or a rank or
            rate is out of range.
    """
    rates = checked_rates(fpirs, "fpirs")
    limits = np.asarray(ranks)
    if limits.ndim != 1 or (limits.size and limits.dtype.kind not in "iu") or not (limits >= 1).all():
        raise ValueError(f"ranks {limits.tolist()} must be a list of whole numbers from 1")
    return search(probe, probe_ids, gallery, gallery_ids).rates(limits, rates)


class Matches(NamedTuple):
    """P probes in a gallery: highest score, rank of the mate, and whether there is a mate, (P,) each."""

    best: NDArray[np.float64]
    rank: NDArray[np.int64]
    is_mated: NDArray[np.bool_]

    def rates(
        self, ranks: NDArray[np.int64], fpirs: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the rates of `identify`."""
        mated = self.rank[self.is_mated]
        if not mated.size:
            return np.full(len(ranks), np.nan), np.full(len(fpirs), np.nan)
        rank_rates = np.array([np.count_nonzero(mated <= limit) / mated.size for limit in ranks])
        if self.is_mated.all():
            return rank_rates, np.full(len(fpirs), np.nan)
        thresholds = thresholds_at_far(self.best[~self.is_mated], fpirs)
        first = self.best[self.is_mated][mated == 1]
        return rank_rates, np.array([np.count_nonzero(first > each) / mated.size for each in thresholds])


def search(probe: ArrayLike, probe_ids: ArrayLike, gallery: ArrayLike, gallery_ids: ArrayLike) -> Matches:
    """Search probes in a gallery; see `identify`."""
    probes, entries = np.asarray(probe, np.float64), np.asarray(gallery, np.float64)
    ids, kind = identities_of(probe_ids, "probe_ids")
    entry_ids, entry_kind = identities_of(gallery_ids, "gallery_ids")
    if probes.ndim != 2 or entries.ndim != 2 or probes.shape[1] != entries.shape[1] or not len(entries):
        raise ValueError(f"probe and gallery have shapes {probes.shape} and {entries.shape}; must be (P, D), (G, D)")
    if ids.shape != probes.shape[:1] or entry_ids.shape != entries.shape[:1]:
        raise ValueError(f"ids have shapes {ids.shape} and {entry_ids.shape}; there must be one per embedding")
    if kind != entry_kind and len(ids):
        raise ValueError(f"probe_ids are {kind}, gallery_ids {entry_kind}: must be of one type, or no probe has a mate")
    probes, entries = normalised(probes), normalised(entries)
    best, rank, is_mated = np.empty(len(probes)), np.empty(len(probes), np.int64), np.empty(len(probes), bool)
    for start in range(0, len(probes), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = probes[part] @ entries.T
        mates = ids[part, None] == entry_ids
        best[part], is_mated[part] = scores.max(1).round(_TIE), mates.any(1)
        mate = np.where(mates, scores, -np.inf).max(1, keepdims=True)
        rank[part] = 1 + ((scores >= mate - 10.0**-_TIE) & ~mates).sum(1)
    return Matches(best, rank, is_mated)


def checked_rates(rates: ArrayLike | Sequence[float], name: str = "fars") -> NDArray[np.float64]:
    """Return rates as float64 (F,).

    Raises:
        ValueError: not a list of numbers in [0, 1].
    """
    found = np.asarray(rates, np.float64)
    if found.ndim != 1 or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"{name} {found.tolist()} must be a list of rates between 0 and 1")
    return found


def allowed_false_accepts(rates: NDArray[np.float64], num_impostors: int) -> NDArray[np.int64]:
    """Return the largest k with k / num_impostors <= rate; the floor of a float product can be off by one."""
    count = np.floor(rates * num_impostors).astype(np.int64)
    count += (count + 1) / num_impostors <= rates
    return count - (count / num_impostors > rates)
