"""Compare models that were measured on the same pairs: paired tests of differences, and the pairs that flipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from rayface.arrays import Bools
from rayface.evaluation.identification import tar_at_far
from rayface.evaluation.intervals import REPLICATES, IdentityBootstrap, Interval
from rayface.evaluation.pair_scores import PairScores, read_pair_scores
from rayface.storage import DataError, join, make_folder, normalise, refuse_repeated, write_bytes

_FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
COMPARISON, FLIPS = "comparison.csv", "flips.csv"


@dataclass(frozen=True, kw_only=True)
class ListSize:
    """Number of pairs of a list, and of their identities."""

    pairs: int
    identities: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of runs on the same lists of pairs, each compared with the first run.

    Attributes:
        table: one row for each list, run and figure: value with its interval (low, high). Of later runs also the
            difference from the first run with its interval and two-sided p value by the paired bootstrap over
            identities and, for accuracy_mean, the exact p value of McNemar's test, which takes pairs as independent,
            and the numbers of pairs gained (only this run is right) and lost (only the first run is right).
        flips: one row for each gained or lost pair, in the order of the list.
        sizes: size of each list, by the name of its protocol.
    """

    runs: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    flips: pd.DataFrame = field(repr=False)
    sizes: Mapping[str, ListSize]

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, for --json; missing ones are null."""
        return {
            "runs": list(self.runs),
            "protocols": {name: vars(size) for name, size in self.sizes.items()},
            "comparison": _records(self.table),
            "flips": _records(self.flips),
        }

    def write(self, out: str | Path) -> None:
        """Write comparison.csv and flips.csv into a folder, a path or URI."""
        make_folder(normalise(out))
        for name, table in ((COMPARISON, self.table), (FLIPS, self.flips.map(_without_formula))):
            write_bytes(join(normalise(out), name), table.to_csv(index=False).encode())


def _without_formula(value: object) -> Any:
    """Return a cell that a spreadsheet shows as it is: names of images may come from outside."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    values = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in values.to_dict("records")]


def compare(runs: Sequence[str | Path], *, replicates: int = REPLICATES, seed: int = 0) -> Comparison:
    """Compare two or more runs on the pairs that all of them were measured on.

    Args:
        runs: paths or URIs of run directories, or of outputs of `rayface evaluate`, with their pair_scores.parquet;
            lists of pairs that not all have are left out.
        replicates, seed: of the bootstrap, see `IdentityBootstrap`.

    Raises:
        ValueError: fewer than two runs, one given twice, no pair scores, or different pairs of one protocol; one line.
    """
    if len(runs) < 2:
        raise ValueError("compare: requires at least two runs: give run directories or outputs of `rayface evaluate`")
    folders, names = [normalise(run) for run in runs], [str(run) for run in runs]
    refuse_repeated(folders, "RUN")
    scores = [read_pair_scores(folder) for folder in folders]
    lists = [name for name in scores[0] if all(name in other for other in scores)]
    if not lists:
        measured = "; ".join(f"{run} by {', '.join(own)}" for run, own in zip(names, scores, strict=True))
        raise ValueError(f"compare: no protocol is common to the runs ({measured}): evaluate them on the same pairs")
    rows, flips, sizes = [], [], {}
    for name in lists:
        first, *others = (own[name] for own in scores)
        for run, other in zip(names[1:], others, strict=True):
            _refuse_other_pairs(names[0], first, run, other)
            flips.append(_flips(name, run, first, other))
        bootstrap = first.bootstrap(replicates, seed)
        figures = [_Figures.of(each, bootstrap) for each in (first, *others)]
        for run, each in zip(names, figures, strict=True):
            rows += [{"protocol": name, **row} for row in each.rows(run, figures[0], bootstrap)]
        sizes[name] = ListSize(pairs=len(first.is_same), identities=bootstrap.num_identities)
    return Comparison(
        runs=tuple(names),
        table=pd.DataFrame(rows).astype({"gained": "Int64", "lost": "Int64"}),
        flips=pd.concat(flips, ignore_index=True),
        sizes=sizes,
    )


def _refuse_other_pairs(first: str, wanted: PairScores, run: str, found: PairScores) -> None:
    if len(found.is_same) != len(wanted.is_same):
        raise ValueError(
            f"compare: {run}: has {len(found.is_same)} pairs, {first} has {len(wanted.is_same)}: must be measured on "
            "the same pairs: evaluate both models on one pairs file"
        )
    for name in ("path_a", "path_b", "is_same", "fold"):
        differ = np.flatnonzero(np.asarray(getattr(found, name)) != np.asarray(getattr(wanted, name)))
        if len(differ):
            row = differ[0]
            raise ValueError(
                f"compare: {run}: {name} of pair {row} is {getattr(found, name)[row]}, in {first} it is "
                f"{getattr(wanted, name)[row]}: must be measured on the same pairs: evaluate both models on one file"
            )


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """Values of a run's figures by name, and their replicates, (R,) each."""

    is_right: Bools
    is_same: Bools
    values: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, scores: PairScores, bootstrap: IdentityBootstrap) -> _Figures:
        genuine, impostor = scores.score[scores.is_same], scores.score[~scores.is_same]
        fars = [far for far in _FARS if far * len(impostor) >= 1 and len(genuine)]
        values = {"accuracy_mean": _accuracy(scores)}
        replicates = {"accuracy_mean": scores.accuracies(bootstrap)}
        if fars:
            found = bootstrap.at_far(scores.score, scores.is_same, fars).tar
            for k, tar in enumerate(tar_at_far(genuine, impostor, fars)):
                values[f"tar_at_far {fars[k]:.0e}"] = float(tar)
                replicates[f"tar_at_far {fars[k]:.0e}"] = found[:, k]
        return cls(is_right=scores.is_right, is_same=scores.is_same, values=values, replicates=replicates)

    def rows(self, run: str, first: _Figures, bootstrap: IdentityBootstrap) -> Iterator[dict[str, object]]:
        """Yield this run's rows of the table."""
        for name, value in self.values.items():
            counted = None if name == "accuracy_mean" else self.is_same
            low, high = bootstrap.rate_interval(value, self.replicates[name], counted)
            row: dict[str, object] = {"run": run, "figure": name, "value": value, "low": low, "high": high}
            if self is not first:
                differences = self.replicates[name] - first.replicates[name]
                found = difference(value - first.values[name], differences, bootstrap, counted)
                row |= {"difference": found.value, "difference_low": found.interval.low}
                row |= {"difference_high": found.interval.high, "p_value": found.p_value}
                if name == "accuracy_mean":
                    gained = int((self.is_right & ~first.is_right).sum())
                    lost = int((~self.is_right & first.is_right).sum())
                    row |= {"mcnemar_p": mcnemar(gained, lost), "gained": gained, "lost": lost}
            yield row


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of a figure between two models, its interval and two-sided p value."""

    value: float
    interval: Interval
    p_value: float


def difference(
    value: float, differences: NDArray[np.float64], bootstrap: IdentityBootstrap, counted: Bools | None = None
) -> Difference:
    """Return the difference of a figure from that of the first model, by differences of paired replicates (R,).

    The p value is twice the smaller share of replicates on either side of 0, 0 included; at least 2 / (R + 1).
    Interval and p value are NaN if the figure counts fewer than two identities; `counted`: see `rate_interval`.
    """
    found = differences[~np.isnan(differences)]
    smaller = min((found <= 0).sum(), (found >= 0).sum()) if len(found) else 0
    p_value = min(1.0, 2 * (smaller + 1) / (len(found) + 1)) if bootstrap.num_counted(counted) > 1 else np.nan
    return Difference(value=value, interval=bootstrap.interval(differences, counted), p_value=float(p_value))


def accuracy_differences(
    first: str, others: Mapping[int, str], *, replicates: int = REPLICATES, seed: int = 0
) -> dict[int, Difference]:
    """Return the difference of each run's mean accuracy by the first protocol from that of the first run, by number.

    Runs without pair scores, or on other pairs, are left out; all, if the first run has none.
    """
    try:
        name, scores = next(iter(read_pair_scores(normalise(first)).items()))
    except DataError:
        return {}
    bootstrap = scores.bootstrap(replicates, seed)
    value, own = _accuracy(scores), scores.accuracies(bootstrap)
    found = {}
    for number, run in others.items():
        with contextlib.suppress(ValueError):
            other = read_pair_scores(normalise(run)).get(name)
            if other is not None:
                _refuse_other_pairs(first, scores, run, other)
                replicate = other.accuracies(bootstrap)
                found[number] = difference(_accuracy(other) - value, replicate - own, bootstrap)
    return found


def _accuracy(scores: PairScores) -> float:
    return float(np.mean([scores.is_right[scores.fold == fold].mean() for fold in np.unique(scores.fold)]))


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p value of McNemar's test; 1 if no pair flipped."""
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _flips(protocol: str, run: str, first: PairScores, other: PairScores) -> pd.DataFrame:
    rows = np.flatnonzero(first.is_right != other.is_right)
    return pd.DataFrame(
        {
            "protocol": protocol,
            "run": run,
            "pair": rows,
            "path_a": np.asarray(first.path_a)[rows],
            "path_b": np.asarray(first.path_b)[rows],
            "is_same": first.is_same[rows],
            "fold": first.fold[rows],
            "first_score": first.score[rows],
            "score": other.score[rows],
            "flip": np.where(other.is_right[rows], "gained", "lost"),
        }
    )
