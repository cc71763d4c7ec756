"""Figures of template protocols: 1:1 verification and 1:N identification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.evaluation.identification import FPIRS, RANKS, Matches, search, tar_at_far, thresholds_at_far
from rayface.evaluation.intervals import REPLICATES, FarIntervals, IdentityBootstrap, Interval
from rayface.evaluation.pair_scores import pair_identities
from rayface.evaluation.pairs import FARS, unresolved
from rayface.evaluation.pictures import Pictures, pictures_of
from rayface.evaluation.protocol import Figure, ProtocolResult, Roc, number
from rayface.evaluation.template_set import TemplateSet
from rayface.evaluation.verification import roc_of

_BLOCK = 65_536  # pairs per block


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Rank rates (RANKS) and TPIR (FPIRS) of the probes in a gallery, NaN if not measured; their intervals, if any.

    TPIR is measured at rates that allow a false positive: of `num_unmated` probes without a mate, one at least.
    """

    rank_rates: NDArray[np.float64]
    tpir: NDArray[np.float64]
    num_unmated: int
    rank_intervals: tuple[Interval, ...] = ()
    tpir_intervals: tuple[Interval, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the rates by rank and by FPIR, as JSON types."""
        ranks, fpirs = [str(rank) for rank in RANKS], [f"{fpir:g}" for fpir in FPIRS]
        rates: dict[str, object] = {
            "rank": {rank: number(rate) for rank, rate in zip(ranks, self.rank_rates.tolist(), strict=True)},
            "tpir_at_fpir": {fpir: number(rate) for fpir, rate in zip(fpirs, self.tpir.tolist(), strict=True)},
        }
        if not self.rank_intervals:
            return rates
        return {
            **rates,
            "rank_interval": dict(zip(ranks, (each.as_list() for each in self.rank_intervals), strict=True)),
            "tpir_at_fpir_interval": dict(zip(fpirs, (each.as_list() for each in self.tpir_intervals), strict=True)),
        }


@dataclass(frozen=True, kw_only=True)
class TemplateResult(ProtocolResult):
    """Result of a template protocol.

    Attributes:
        tar_at_far, threshold_at_far: of 1:1, by rate; None for rates that the pairs do not resolve.
        identification: 1:N in each gallery, by name.
        all_galleries: rank rates in all galleries together, and the mean TPIR of the galleries; None without 1:N.
        num_pairs, num_templates: numbers of those that were scored.
        num_left_out: number of images that are not readable.
        far_intervals: intervals of tar_at_far and threshold_at_far; None without.
        num_identities: number of identities of the pairs.
    """

    tar_at_far: Mapping[str, float | None]
    threshold_at_far: Mapping[str, float | None]
    identification: Mapping[str, Identification] = field(default_factory=dict)
    all_galleries: Identification | None = None
    num_pairs: int
    num_templates: int
    num_left_out: int
    far_intervals: FarIntervals | None = None
    num_identities: int | None = None

    def figures(self) -> dict[str, Figure]:
        galleries = {name: found.as_dict() for name, found in self.identification.items()}
        return {
            "tar_at_far": dict(self.tar_at_far),
            "threshold_at_far": dict(self.threshold_at_far),
            **({} if self.all_galleries is None else {"identification": {**self.all_galleries.as_dict(), **galleries}}),
            "num_pairs": self.num_pairs,
            "num_templates": self.num_templates,
            "num_left_out": self.num_left_out,
            **({} if self.num_identities is None else {"num_identities": self.num_identities}),
            **({} if self.far_intervals is None else self.far_intervals.figures()),
        }

    @property
    def main_figure(self) -> float:
        """TAR at FAR 1e-4, or at the lowest rate above it that the pairs resolve."""
        rates = [rate for far, rate in self.tar_at_far.items() if rate is not None and float(far) >= 1e-4]
        return rates[-1] if rates else float("nan")


def score_templates(
    features: NDArray[np.float64],
    ids: Ints,
    lists: TemplateSet,
    *,
    name: str = "templates",
    num_left_out: int = 0,
    replicates: int = REPLICATES,
    done: Callable[[], None] = lambda: None,
) -> TemplateResult:
    """Measure 1:1 and 1:N on the features of templates.

    Args:
        features: (T, D) of length 1.
        ids: (T,) templates of the features, in rising order; pairs, entries and probes of other templates are left out.
        lists: the protocol's lists.
        name: name of the set, for the report.
        num_left_out: number of images that are not in the features.
        replicates: replicates of the intervals; 0: no intervals.
        done: called after every block of pairs.
    """
    places = _places(lists.pairs, ids)
    kept = (places >= 0).all(axis=1)
    a, b = places[kept].T
    scores, is_same = np.empty(len(a)), lists.is_same[kept]
    for start in range(0, len(a), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores[part] = np.einsum("nd,nd->n", features[a[part]], features[b[part]])
        done()
    genuine, impostor = scores[is_same], scores[~is_same]
    identification, together = _identified(features, ids, lists, replicates)
    reasons = unresolved(FARS, len(impostor)) if len(genuine) and len(impostor) else _one_class(len(genuine))
    fars = [far for far in FARS if f"tar_at_far.{far:.0e}" not in reasons] if "tar_at_far" not in reasons else []
    tars, thresholds = (tar_at_far(genuine, impostor, fars), thresholds_at_far(impostor, fars)) if fars else ((), ())
    measured = {far: tar for far, tar in _by_far(fars, tars).items() if tar is not None}
    bootstrap = _bootstrap(lists, ids, a, b, is_same, replicates) if fars and replicates else None
    return TemplateResult(
        tar_at_far=_by_far(fars, tars),
        threshold_at_far=_by_far(fars, thresholds),
        identification=identification,
        all_galleries=together,
        num_pairs=len(scores),
        num_templates=len(ids),
        num_left_out=num_left_out,
        num_identities=None if bootstrap is None else bootstrap.num_identities,
        far_intervals=None if bootstrap is None else bootstrap.far_intervals(scores, is_same, measured),
        roc=Roc(*roc_of(scores, is_same)[:2]) if len(genuine) and len(impostor) else None,
        pictures=_pictures(name, scores, is_same, lists, (ids[a], ids[b])) if len(scores) else None,
        not_measured=reasons | _missing_tpir(identification) | _left_out(lists, ids),
    )


def _pictures(
    name: str, scores: NDArray[np.float64], is_same: NDArray[np.bool_], lists: TemplateSet, templates: tuple[Ints, Ints]
) -> Pictures:
    """Return the pictures of pairs of templates, each shown by its first image."""
    known, first = np.unique(lists.template, return_index=True)
    a, b = (first[np.searchsorted(known, each)] for each in templates)
    return pictures_of(name, scores, is_same, a, b, lists.names)


def _bootstrap(
    lists: TemplateSet, ids: Ints, a: Ints, b: Ints, is_same: NDArray[np.bool_], replicates: int
) -> IdentityBootstrap:
    """Return the replicates of pairs of templates; identities are those of galleries and probes, and of the pairs."""
    listed = [*lists.galleries.values(), lists.probes]
    names = np.concatenate([np.array([f"template {i}" for i in ids.tolist()]), *(names for _, names in listed)])
    places = np.concatenate([np.arange(len(ids)), *(_places(templates, ids) for templates, _ in listed)])
    labels = np.empty(len(ids), np.int64)
    labels[places[places >= 0]] = np.unique(names, return_inverse=True)[1][places >= 0]  # the last name counts
    identity = pair_identities(labels, a, b, is_same)
    return IdentityBootstrap(identity[a], identity[b], replicates=replicates)


def _identified(
    features: NDArray[np.float64], ids: Ints, lists: TemplateSet, replicates: int
) -> tuple[dict[str, Identification], Identification | None]:
    """Return the rates in each gallery, and the rank rates in all together with the mean TPIR."""
    probe, names = lists.probes
    place = _places(probe, ids)
    probes, probe_ids = features[place[place >= 0]], names[place >= 0]
    matches, entries = {}, []
    for name, (templates, identities) in lists.galleries.items():
        own = _places(templates, ids)
        gallery = features[own[own >= 0]], identities[own >= 0]
        if len(probes) and len(gallery[0]):
            matches[name] = search(probes, probe_ids, *gallery)
            entries.append(gallery)
    if not matches:
        return {}, None
    together = search(probes, probe_ids, *(np.concatenate(part) for part in zip(*entries, strict=True)))
    bootstrap = IdentityBootstrap(probe_ids, replicates=replicates) if replicates else None
    found = {name: _rates(each, [each], bootstrap) for name, each in matches.items()}
    return found, _rates(together, [*matches.values()], bootstrap)


def _rates(ranked: Matches, galleries: Sequence[Matches], bootstrap: IdentityBootstrap | None) -> Identification:
    """Return the rank rates of `ranked` and the mean TPIR of the galleries; intervals over the probes' identities."""
    limits, fpirs = np.array(RANKS), np.array(FPIRS)
    rank_rates = ranked.rates(limits, fpirs)[0]
    unmated = [int(np.count_nonzero(~each.is_mated)) for each in galleries]
    resolved = fpirs * min(unmated) >= 1
    tpir = np.where(resolved, np.mean([each.rates(limits, fpirs)[1] for each in galleries], axis=0), np.nan)
    if bootstrap is None:
        return Identification(rank_rates=rank_rates, tpir=tpir, num_unmated=min(unmated))
    hits = (ranked.rank[:, None] <= limits) & ranked.is_mated[:, None]
    ranks = bootstrap.ratios(hits, ranked.is_mated)
    tpirs = np.mean([_tpir_replicates(each, bootstrap) for each in galleries], axis=0)

    def intervals(rates: NDArray[np.float64], replicates: NDArray[np.float64]) -> tuple[Interval, ...]:
        columns = zip(rates.tolist(), replicates.T, strict=True)
        return tuple(bootstrap.rate_interval(rate, own, ranked.is_mated) for rate, own in columns)

    return Identification(
        rank_rates=rank_rates,
        tpir=tpir,
        num_unmated=min(unmated),
        rank_intervals=intervals(rank_rates, ranks),
        tpir_intervals=intervals(tpir, tpirs),
    )


def _tpir_replicates(found: Matches, bootstrap: IdentityBootstrap) -> NDArray[np.float64]:
    scores = np.where(found.is_mated & (found.rank > 1), -np.inf, found.best)  # never identified
    return bootstrap.at_far(scores, found.is_mated, FPIRS).tar


def _missing_tpir(found: Mapping[str, Identification]) -> dict[str, str]:
    reasons = {}
    for name, each in found.items():
        if np.isnan(each.rank_rates).any():
            reasons[f"identification.{name}.rank"] = "no probe has a mate in the gallery"
        elif not each.num_unmated:
            reasons[f"identification.{name}.tpir_at_fpir"] = "every probe has a mate in the gallery: there is no FPIR"
        else:
            few = f"{each.num_unmated:,} probes without a mate resolve no FPIR below {1 / each.num_unmated:.1e}"
            missing = [fpir for fpir, tpir in zip(FPIRS, each.tpir, strict=True) if np.isnan(tpir)]
            reasons |= {f"identification.{name}.tpir_at_fpir.{fpir:g}": few for fpir in missing}
    return reasons


def _left_out(lists: TemplateSet, ids: Ints) -> dict[str, str]:
    """Say how many pairs, probes and entries of galleries have a template that is not in `ids`."""
    listed = {"pairs": ("pairs", lists.pairs), "probes": ("probes", lists.probes[0])}
    listed |= {name: (f"entries of {name}", templates) for name, (templates, _) in lists.galleries.items()}
    found = {}
    for name, (what, templates) in listed.items():
        missing = _places(templates, ids) < 0
        if count := np.count_nonzero(missing.any(axis=1) if missing.ndim > 1 else missing):
            first = f"template {templates[missing][0]} has no image that can be used"
            found[name] = f"{count:,} of {len(templates):,} {what} are left out: {first}"
    return found


def _places(templates: Ints, ids: Ints) -> Ints:
    """Return the places of templates in the rising `ids`, -1 for those that are not there."""
    if not len(ids):
        return np.full(templates.shape, -1, np.int64)
    found = np.minimum(np.searchsorted(ids, templates), len(ids) - 1)
    return np.where(ids[found] == templates, found, -1)


def _one_class(num_genuine: int) -> dict[str, str]:
    return {"tar_at_far": "there are no impostor pairs" if num_genuine else "there are no genuine pairs"}


def _by_far(fars: list[float], values: object) -> dict[str, float | None]:
    found = dict(zip(fars, np.asarray(values).tolist(), strict=True))
    return {f"{far:.0e}": found.get(far) for far in FARS}
