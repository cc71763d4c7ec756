"""The pairs protocol: 10-fold verification accuracy and TAR at FAR on pairs of images (LFW, CFP-FP, AgeDB-30, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.config import EvaluateConfig
from rayface.evaluation.identification import tar_at_far, thresholds_at_far
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.intervals import REPLICATES, FarIntervals, Interval
from rayface.evaluation.pair_scores import PairScores, pair_identities
from rayface.evaluation.pair_set import PairSet, load_bin, load_pairs
from rayface.evaluation.pictures import pictures_of
from rayface.evaluation.protocol import EvaluationProtocol, Figure, ProtocolResult, Roc, fault_of, number
from rayface.evaluation.quality import DiscardCurve, discard_curve
from rayface.evaluation.verification import best_threshold, fold_decisions, pair_scores, roc_of
from rayface.models.embedded import Embedded

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_CONSTANT = 1e-9  # scores that differ by less are equal


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """Pairs file and the datasets that hold its images, or .bin files; replicates of the intervals."""

    pairs: str = ""
    data: tuple[str, ...] = ()
    bin: tuple[str, ...] = ()
    replicates: int


@dataclass(frozen=True, kw_only=True)
class PairResult(ProtocolResult):
    """Result of verification on pairs.

    Attributes:
        accuracy_mean, accuracy_std: mean and standard deviation over the folds.
        best_threshold: the cosine threshold of the highest accuracy on all pairs.
        tar_at_far: {"1e-03": rate, ...} for the rates that the number of impostor pairs can resolve.
        threshold_at_far: cosine thresholds of the same rates: accepted is score > threshold.
        num_pairs: number of pairs.
        num_identities: number of identities, from which the intervals come; see `pair_identities`.
        accuracy_interval, far_intervals: intervals of the figures; None without.
        discard: errors when pairs of low quality are rejected; None without norms.
    """

    accuracy_mean: float
    accuracy_std: float
    best_threshold: float = math.nan
    tar_at_far: Mapping[str, float]
    threshold_at_far: Mapping[str, float] = field(default_factory=dict)
    num_pairs: int
    num_identities: int | None = None
    accuracy_interval: Interval | None = None
    far_intervals: FarIntervals | None = None
    discard: DiscardCurve | None = None

    def figures(self) -> dict[str, Figure]:
        return {
            "accuracy_mean": number(self.accuracy_mean),
            "accuracy_std": number(self.accuracy_std),
            "tar_at_far": dict(self.tar_at_far),
            "num_pairs": self.num_pairs,
            "best_threshold": number(self.best_threshold),
            "threshold_at_far": dict(self.threshold_at_far),
            **self._interval_figures(),
        }

    def _interval_figures(self) -> dict[str, Figure]:
        if self.accuracy_interval is None or self.far_intervals is None:
            return {}
        return {
            "num_identities": self.num_identities,
            "accuracy_interval": self.accuracy_interval.as_list(),
            **self.far_intervals.figures(),
        }

    def curves(self) -> dict[str, object]:
        discard = {} if self.discard is None else {"error_versus_discard": self.discard.as_dict()}
        return {**super().curves(), **discard}

    @property
    def main_figure(self) -> float:
        return self.accuracy_mean


class PairsProtocol(EvaluationProtocol):
    """Verification on the pairs of evaluate.pairs, whose images are in evaluate.data."""

    def __init__(self, pairs: PairSet, file: str, *, replicates: int = REPLICATES) -> None:
        self.pairs, self._file, self._replicates = pairs, file, replicates

    @classmethod
    def settings_of(cls, evaluate: EvaluateConfig) -> Any | None:
        if evaluate.pairs is None:
            if evaluate.data:
                raise ValueError(
                    "evaluate.data: requires evaluate.pairs (--pairs), the pairs of its images; a measurement without "
                    "pairs takes evaluate.all_vs_all, evaluate.bin or evaluate.templates in place of evaluate.data"
                )
            return None
        if not evaluate.data:
            raise ValueError("evaluate.pairs: requires evaluate.data, the dataset that holds the named images")
        return PairsSettings(pairs=evaluate.pairs, data=evaluate.data, replicates=evaluate.bootstrap)

    @classmethod
    def open(cls, settings: PairsSettings, *, image_size: int) -> PairsProtocol:
        for key, path in (("pairs", settings.pairs), *(("data", path) for path in settings.data)):
            if "://" not in path and not Path(path).exists():
                remedy = "give the path of the pairs file and of its dataset"
                raise ValueError(f"evaluate.{key}: {path}: does not exist: {remedy}")
        pairs = load_pairs(settings.pairs, settings.data, image_size=image_size)
        return cls(pairs, settings.pairs, replicates=settings.replicates)

    @property
    def inputs(self) -> dict[str, str]:
        return {"pairs": self._file}

    @property
    def source(self) -> ImageRows | None:
        return self.pairs.source

    @property
    def digest(self) -> str:
        return self.pairs.digest or super().digest

    @property
    def num_images(self) -> int:
        return len(self.pairs.images)

    def read_images(self, first: int, last: int) -> NDArray[np.uint8]:
        return self.pairs.images[first:last]

    def score(self, embedded: Embedded, done: Callable[[], None] = lambda: None) -> PairResult:
        return evaluate_pairs(embedded.embeddings, self.pairs, done, norms=embedded.norms, replicates=self._replicates)

    def score_without(self, left_out: NDArray[np.bool_], embedded: Embedded) -> PairResult:
        kept = ~(left_out[self.pairs.a] | left_out[self.pairs.b])
        columns = {name: getattr(self.pairs, name)[kept] for name in ("a", "b", "is_same", "fold")}
        return evaluate_pairs(
            embedded.embeddings, replace(self.pairs, **columns), norms=embedded.norms, replicates=self._replicates
        )


class BinProtocol(PairsProtocol):
    """Verification on a .bin file of evaluate.bin; each file is a protocol of its own, named after it."""

    @classmethod
    def settings_of(cls, evaluate: EvaluateConfig) -> Any | None:
        return PairsSettings(bin=evaluate.bin, replicates=evaluate.bootstrap) if evaluate.bin else None

    @classmethod
    def open_each(cls, name: str, settings: PairsSettings, *, image_size: int) -> dict[str, EvaluationProtocol]:
        found: dict[str, EvaluationProtocol] = {}
        for path in settings.bin:
            pairs = load_bin(path, image_size=image_size)
            if pairs.name in found:
                raise ValueError(f"evaluate.bin: {path}: another file has the name {pairs.name}: rename one of them")
            found[pairs.name] = cls(pairs, path, replicates=settings.replicates)
        return found

    @property
    def inputs(self) -> dict[str, str]:
        return {"bin": self._file}


def evaluate_pairs(
    embeddings: NDArray[np.float32],
    pairs: PairSet,
    done: Callable[[], None] = lambda: None,
    *,
    norms: NDArray[np.float32] | None = None,
    replicates: int = REPLICATES,
) -> PairResult:
    """Measure verification on a set of pairs.

    Args:
        embeddings: (n, D), of the images of the set.
        pairs: the set.
        done: called after every block of pairs.
        norms: (n,) lengths of the raw embeddings, for the error-versus-discard curve; None or NaN: unknown.
        replicates: replicates of the intervals; 0: no intervals.
    """
    if reason := fault_of(embeddings):
        return _not_measured(pairs, reason)
    distance, score = pair_scores(embeddings, pairs.a, pairs.b, done)
    if reason := _degenerate(pairs, score):
        return _not_measured(pairs, reason)
    accepted, accuracy = fold_decisions(distance, pairs.is_same, pairs.fold)
    outcome = _outcome(pairs, score, accepted, norms)
    genuine, impostor = score[pairs.is_same], score[~pairs.is_same]
    fars = [far for far in FARS if far * len(impostor) >= 1]
    names = [f"{far:.0e}" for far in fars]
    tars = dict(zip(names, tar_at_far(genuine, impostor, fars).tolist(), strict=True))
    thresholds = dict(zip(names, thresholds_at_far(impostor, fars).tolist(), strict=True))
    mean = float(accuracy.mean())
    discard, reason = discard_curve(outcome, thresholds)
    return PairResult(
        accuracy_mean=mean,
        accuracy_std=float(accuracy.std()),
        best_threshold=best_threshold(score, pairs.is_same),
        tar_at_far=tars,
        threshold_at_far=thresholds,
        num_pairs=len(pairs.is_same),
        **(_intervals(outcome, mean, tars, replicates) if replicates else {}),
        pair_scores=outcome,
        discard=discard,
        roc=Roc(*roc_of(score, pairs.is_same)[:2]),
        pictures=pictures_of(pairs.name, score, pairs.is_same, pairs.a, pairs.b, pairs.members),
        not_measured=unresolved(FARS, len(impostor)) | ({"error_versus_discard": reason} if reason else {}),
    )


def _intervals(scores: PairScores, accuracy: float, tars: Mapping[str, float], replicates: int) -> dict[str, Any]:
    """Return the intervals of a `PairResult`."""
    bootstrap = scores.bootstrap(replicates)
    return {
        "num_identities": bootstrap.num_identities,
        "accuracy_interval": bootstrap.rate_interval(accuracy, scores.accuracies(bootstrap)),
        "far_intervals": bootstrap.far_intervals(scores.score, scores.is_same, tars),
    }


def _outcome(
    pairs: PairSet, score: NDArray[np.float64], accepted: NDArray[np.bool_], norms: NDArray[np.float32] | None
) -> PairScores:
    source = pairs.source
    labels = None if source is None else source.dataset.index.label[source.rows]
    identity = pair_identities(labels, pairs.a, pairs.b, pairs.is_same)
    lengths = np.full(len(pairs.is_same), np.nan, np.float32) if norms is None else norms[pairs.a]
    a, b = ([pairs.members[i] if pairs.members else str(i) for i in each.tolist()] for each in (pairs.a, pairs.b))
    return PairScores(
        path_a=a,
        path_b=b,
        is_same=pairs.is_same,
        fold=pairs.fold,
        score=score,
        accepted=accepted,
        identity_a=identity[pairs.a],
        identity_b=identity[pairs.b],
        quality=lengths if norms is None else np.minimum(lengths, norms[pairs.b]),
    )


def unresolved(fars: Sequence[float], num_impostors: int, figure: str = "tar_at_far") -> dict[str, str]:
    """Return the reasons of rates that the number of impostor pairs cannot resolve, by name of the figure."""
    return {
        f"{figure}.{far:.0e}": f"{num_impostors:,} impostor pairs resolve no FAR below {1 / max(1, num_impostors):.1e}"
        for far in fars
        if far * num_impostors < 1
    }


def _degenerate(pairs: PairSet, score: NDArray[np.float64]) -> str | None:
    """Return why the scores of pairs give no figure, None if they do."""
    if not len(score):
        return "no pairs are left"
    if pairs.is_same.all() or not pairs.is_same.any():
        kind = "genuine" if pairs.is_same.all() else "impostor"
        return f"all {len(score)} pairs are {kind}: accuracy and ROC compare the two kinds"
    if (folds := len(np.unique(pairs.fold))) < 2:
        return f"the {len(score)} pairs are in {folds} fold: the threshold comes from the pairs outside the fold"
    if np.ptp(score) < _CONSTANT:
        return f"all {len(score)} pairs have the score {score[0]:.6f}: the model embeds every image alike"
    return None


def _not_measured(pairs: PairSet, reason: str) -> PairResult:
    names = ("accuracy_mean", "accuracy_std", "best_threshold", "tar_at_far", "threshold_at_far")
    return PairResult(
        accuracy_mean=math.nan,
        accuracy_std=math.nan,
        tar_at_far={},
        num_pairs=len(pairs.is_same),
        not_measured=dict.fromkeys(names, reason),
    )
