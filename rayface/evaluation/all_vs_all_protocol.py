"""The all-vs-all protocol: TAR at FAR over every pair of a labelled dataset, and inside groups, as MFR's track does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rayface.arrays import Ints
from rayface.config import EvaluateConfig
from rayface.data.dataset import open_dataset
from rayface.evaluation.dataset_protocol import DatasetProtocol
from rayface.evaluation.genuine_rates import tar_intervals
from rayface.evaluation.groups import Groups, load_groups
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.intervals import REPLICATES
from rayface.evaluation.pairs import FARS, unresolved
from rayface.evaluation.pictures import Pictures, ScoredPair, ScoreHistogram
from rayface.evaluation.protocol import Figure, ProtocolResult, Roc, number
from rayface.evaluation.tail_rates import TailRates
from rayface.models.embedded import Embedded
from rayface.progress import phase
from rayface.storage import DataError

if TYPE_CHECKING:
    from rayface.evaluation.extremes import Extremes, Scored
    from rayface.evaluation.pair_tiles import PairTiles

_HISTOGRAM_SIDE = 1000  # images per side of the sampled impostor pairs
_CURVE = tuple(sorted([*FARS, *(3 * far for far in FARS)]))  # rates of the curve


@dataclass(frozen=True, kw_only=True)
class AllVsAllSettings:
    """Dataset, how several share labels (`data.join`), the columns that group images, replicates of the intervals."""

    data: tuple[str, ...]
    join: Literal["names", "labels", "separate"] | None = None
    group_by: tuple[str, ...] = ()
    groups: str | None = None
    replicates: int = REPLICATES


@dataclass(frozen=True, kw_only=True)
class AllVsAllResult(ProtocolResult):
    """Result of all-vs-all.

    Attributes:
        rates: over all pairs, at the rates of FARS.
        num_images: number of compared images.
        num_left_out: number of images that are not readable.
        groups: rates inside each group, by column.
    """

    rates: TailRates
    num_images: int
    num_left_out: int = 0
    groups: Mapping[str, Mapping[str, TailRates]] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        groups = {column: {name: _figures(rates) for name, rates in own.items()} for column, own in self.groups.items()}
        return {
            **_figures(self.rates),
            "num_images": self.num_images,
            "num_left_out": self.num_left_out,
            **({"groups": groups} if groups else {}),
        }

    @property
    def main_figure(self) -> float:
        """TAR at the lowest rate that the impostor pairs resolve."""
        resolved = [far for far in FARS if far * self.rates.num_impostor >= 1]
        return float(self.rates.tar[FARS.index(min(resolved))]) if resolved else float("nan")


def _figures(rates: TailRates) -> dict[str, Figure]:
    """Return figures as JSON has them; None for a rate that the pairs do not resolve."""
    resolved = [far * rates.num_impostor >= 1 for far in FARS]

    def by_far(values: Any) -> dict[str, object]:
        pairs = zip(FARS, values, resolved, strict=True)
        return {f"{far:.0e}": number(value) if is_resolved else None for far, value, is_resolved in pairs}

    intervals = {
        f"{far:.0e}": interval.as_list()
        for far, interval, is_resolved in zip(FARS, rates.tar_intervals or (), resolved, strict=False)
        if is_resolved
    }
    return {
        "tar_at_far": by_far(rates.tar),
        "threshold_at_far": by_far(rates.threshold),
        **({} if rates.tar_intervals is None else {"tar_at_far_interval": intervals}),
        "num_genuine": rates.num_genuine,
        "num_impostor": rates.num_impostor,
    }


class AllVsAllProtocol(DatasetProtocol):
    """All-vs-all on the dataset of evaluate.all_vs_all, in groups by the columns of evaluate.group_by."""

    def __init__(self, source: ImageRows, image_size: int, groups: Groups, *, replicates: int = REPLICATES) -> None:
        super().__init__(source, image_size)
        self._groups, self._replicates = groups, replicates

    @classmethod
    def settings_of(cls, evaluate: EvaluateConfig) -> Any | None:
        if evaluate.groups is not None and not evaluate.group_by:
            raise ValueError("evaluate.groups: requires evaluate.group_by, the columns of the table to group by")
        if not evaluate.all_vs_all:
            if evaluate.group_by:
                raise ValueError("evaluate.group_by: requires evaluate.all_vs_all, the dataset that is grouped")
            return None
        return AllVsAllSettings(
            data=evaluate.all_vs_all,
            group_by=evaluate.group_by,
            groups=evaluate.groups,
            replicates=evaluate.bootstrap,
        )

    @classmethod
    def open(cls, settings: AllVsAllSettings, *, image_size: int) -> AllVsAllProtocol:
        try:
            dataset = open_dataset(settings.data, join=settings.join)
        except DataError as error:  # training opens other datasets, too, by the same rules
            raise DataError(f"evaluate.all_vs_all: {str(error).removeprefix('data: ')}") from error
        groups = load_groups(dataset, settings.group_by, settings.groups)
        rows = np.arange(dataset.num_images, dtype=np.int64)
        return cls(ImageRows(dataset=dataset, rows=rows), image_size, groups, replicates=settings.replicates)

    @property
    def inputs(self) -> dict[str, str]:
        return {"all_vs_all": ", ".join(self.source.dataset.roots)}

    def score(self, embedded: Embedded, done: Callable[[], None] = lambda: None) -> AllVsAllResult:
        # Not above: they import PyTorch, and a protocol is opened, and its settings are checked, without it.
        import torch

        from rayface.evaluation.all_vs_all import group_rows, tail_rates
        from rayface.evaluation.extremes import Extremes
        from rayface.evaluation.pair_tiles import PairTiles

        embeddings, labels = embedded.embeddings, self.source.dataset.index.label
        norms = np.linalg.norm(embeddings, axis=1)
        if num_bad := int(np.count_nonzero(~np.isfinite(norms))):
            reason = f"{num_bad} of {len(norms)} embeddings are NaN or infinite: the model diverged"
            return _not_measured(len(norms), reason)
        kept = np.flatnonzero(norms > 0)
        device = "cuda" if torch.cuda.is_available() else "cpu"

        extremes = Extremes()

        def rates_of(rows: Ints, fars: tuple[float, ...], extremes: Extremes | None = None) -> TailRates:
            num_pairs = len(rows) * (len(rows) - 1) // 2
            with phase("compare pairs", parts=num_pairs, rows=num_pairs, unit="pairs") as current:

                def advance(pairs: int) -> None:
                    current.advance(pairs)
                    done()

                found = tail_rates(embeddings, labels, fars, rows=rows, device=device, done=advance, extremes=extremes)
            if not self._replicates or not found.num_genuine or not found.num_impostor:
                return found
            intervals = tar_intervals(
                embeddings, labels, found.tar, found.threshold, rows=rows, replicates=self._replicates
            )
            return replace(found, tar_intervals=intervals)

        curve = rates_of(kept, _CURVE, extremes)
        groups = {}
        for column, names in self._groups.items():
            parts = group_rows(names[kept], len(kept))
            groups[column] = {str(name): rates_of(kept[rows], FARS) for name, rows in parts}
        pictures = self._pictures(PairTiles.of(embeddings, labels, rows=kept, device=device), extremes)
        return replace(_result(curve, len(kept), len(norms) - len(kept), groups), pictures=pictures)

    def _pictures(self, pairs: PairTiles, extremes: Extremes) -> Pictures | None:
        """Return the worst pairs, and a histogram of random pairs; None without both kinds of pairs."""
        if not pairs.num_genuine or not pairs.num_impostor:
            return None
        side = min(_HISTOGRAM_SIDE, len(pairs.order))
        genuine = pairs.sample_genuine(min(_HISTOGRAM_SIDE**2, pairs.num_genuine))
        histogram = ScoreHistogram.of(genuine, pairs.sample(1, side))
        numbers = {place for _, *places in [*extremes.genuine, *extremes.impostor] for place in places}
        names = self._names([int(pairs.order[place]) for place in sorted(numbers)])

        def scored(found: Sequence[Scored]) -> tuple[ScoredPair, ...]:
            rows = [(score, int(pairs.order[i]), int(pairs.order[j])) for score, i, j in found]
            return tuple(ScoredPair(a=a, b=b, score=score, name_a=names[a], name_b=names[b]) for score, a, b in rows)

        return Pictures(
            name=self.source.dataset.name,
            histogram=histogram,
            genuine=scored(extremes.genuine),
            impostor=scored(extremes.impostor),
        )

    def _names(self, rows: Sequence[int]) -> dict[int, str]:
        """Return the keys of images; reads the keys once."""
        names: dict[int, str] = {}
        wanted, done = np.unique(rows), 0
        for keys in self.source.dataset.key_batches():
            own = wanted[(wanted >= done) & (wanted < done + len(keys))]
            names |= {int(row): keys[int(row) - done].as_py() for row in own}
            done += len(keys)
        return names

    def score_without(self, left_out: np.ndarray, embedded: Embedded) -> AllVsAllResult:
        return self.score(embedded._replace(embeddings=np.where(left_out[:, None], 0, embedded.embeddings)))


def _result(
    curve: TailRates, num_images: int, num_left_out: int, groups: Mapping[str, Mapping[str, TailRates]]
) -> AllVsAllResult:
    at = [_CURVE.index(far) for far in FARS]
    rates = TailRates(
        tar=curve.tar[at],
        threshold=curve.threshold[at],
        num_genuine=curve.num_genuine,
        num_impostor=curve.num_impostor,
        tar_intervals=None if curve.tar_intervals is None else tuple(curve.tar_intervals[place] for place in at),
    )
    reasons = _reasons(rates, "tar_at_far")
    for column, own in groups.items():
        for name, group in own.items():
            reasons |= _reasons(group, f"groups.{column}.{name}.tar_at_far")
    resolved = np.array([far * curve.num_impostor >= 1 for far in _CURVE])
    is_measured = bool(curve.num_genuine and curve.num_impostor)
    return AllVsAllResult(
        rates=rates,
        num_images=num_images,
        num_left_out=num_left_out,
        groups=groups,
        not_measured=reasons,
        roc=Roc(np.r_[0.0, np.array(_CURVE)[resolved], 1.0], np.r_[0.0, curve.tar[resolved], 1.0])
        if is_measured
        else None,
    )


def _reasons(rates: TailRates, figure: str) -> dict[str, str]:
    if not rates.num_genuine:
        return {figure: "there are no genuine pairs: no identity has two images"}
    if not rates.num_impostor:
        return {figure: "there are no impostor pairs: all images are of one identity"}
    return unresolved(FARS, rates.num_impostor, figure)


def _not_measured(num_images: int, reason: str) -> AllVsAllResult:
    none = np.full(len(FARS), np.nan)
    rates = TailRates(tar=none, threshold=none, num_genuine=0, num_impostor=0)
    return AllVsAllResult(rates=rates, num_images=num_images, not_measured={"tar_at_far": reason})
