"""Decide, partition by partition, which faces are kept: by a threshold, or by the share that one is searched for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.cosines import unit_rows
from rayface.curate.face_nms import suppress_many
from rayface.curate.identities import Selection
from rayface.curate.partitions import Partition, Partitions, read_partition
from rayface.curate.prune.baselines import herding, quotas, random
from rayface.curate.prune.class_probabilities import keep_probabilities, read_probabilities
from rayface.curate.prune.diffprob import diffprob, threshold_at
from rayface.curate.prune.keep_ratio import search_threshold, some_identities
from rayface.embedding.embeddings import Rows
from rayface.ray_tasks import map_unordered
from rayface.storage import atomic_stream

METHODS = ("face_nms", "random", "herding", "diffprob")
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int64(),
        "kept": pa.bool_(),
        "score": pa.float32(),
        "suppressed_by": pa.string(),
        "reason": pa.string(),
    }
)
_REASONS = {"face_nms": "too alike", "random": "not drawn", "herding": "not chosen", "diffprob": "as probable"}
_SAMPLE_FACES = 50_000
_SAMPLE_PIECES = 8
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How faces are chosen; the same rule keeps the same faces however they are cut into partitions.

    Attributes:
        method: one of METHODS.
        threshold: of face_nms and diffprob.
        keep: share of all faces, of random and herding.
        min_images: kept of every identity that has so many.
        global_weight: of the sparsity among all faces in the score of face_nms.
        seed: of random.
        head, scale: of diffprob; the run that the embeddings' model is of, and the scale that it was trained with.
    """

    method: str
    threshold: float | None = None
    keep: float | None = None
    min_images: int = 1
    global_weight: float = 0.0
    seed: int = 0
    head: str | None = None
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a rule needs to know of all faces: quota (I,) of each identity of labels (I,), mean direction (D,)."""

    labels: Ints
    quota: Ints | None = None
    direction: NDArray[np.float64] | None = None


def select_rows(
    rows: Rows,
    offsets: Ints,
    rule: Rule,
    context: Context,
    probabilities: NDArray[np.float64] | None = None,
) -> Selection:
    """Apply a rule to whole identities; `probabilities` (n,) of their own classes are for diffprob."""
    if rule.method == "face_nms":
        assert rule.threshold is not None
        bonus = None
        if context.direction is not None:
            bonus = rule.global_weight * (1 - _project(rows.embeddings, context.direction))
        return suppress_many(rows.embeddings, offsets, rule.threshold, min_images=rule.min_images, bonus=bonus)
    if rule.method == "diffprob":
        assert rule.threshold is not None
        assert probabilities is not None
        return diffprob(probabilities, offsets, rule.threshold, min_images=rule.min_images)
    assert context.quota is not None
    quota = context.quota[np.searchsorted(context.labels, rows.labels[offsets[:-1]])]
    if rule.method == "random":
        return random(rows.labels, quota, seed=rule.seed)
    return herding(rows.embeddings, offsets, quota)


class Chooser:
    """Applies rules to all partitions on the cluster; what was decided is kept in files and not decided again.

    Args:
        folder: for the decisions, a parquet file (SCHEMA) for each rule and partition, and diffprob's probabilities.
    """

    def __init__(self, partitions: Partitions, folder: Path) -> None:
        self._pieces, self._folder = partitions, folder
        self._numbered = list(enumerate(partitions.partitions))
        self._direction: NDArray[np.float64] | None = None

    def search(self, keep: float, rule: Rule) -> Rule:
        """Return the rule with the threshold that keeps a share of all faces, within .5 points.

        Bisects on a sample of identities and verifies on all.

        Raises:
            ValueError: no threshold keeps this share.
        """
        sample = self._sample(rule)
        context = self._context(rule)

        def of_sample(place: float) -> float:
            assert sample is not None
            rows, offsets, probabilities = sample
            return float(select_rows(rows, offsets, _at(rule, place), context, probabilities).kept.mean())

        def of_all(place: float) -> float:
            return self.decide(_at(rule, place)) / self._pieces.num_rows

        place, _ = search_threshold(keep, of_all if sample is None else of_sample, of_all)
        return _at(rule, place)

    def decide(self, rule: Rule) -> int:
        """Apply a rule to all partitions; return how many faces are kept."""
        folder = self._decisions(rule)
        folder.mkdir(parents=True, exist_ok=True)
        shared = ray.put(self._context(rule))
        probabilities_of = self._probabilities(rule)

        def decide(numbered: tuple[int, Partition]) -> dict[str, Any]:
            torch.set_num_threads(1)
            path = str(folder / _part_name(numbered[0]))
            if not Path(path).exists():
                rows, offsets = read_partition(numbered[1])
                found = select_rows(rows, offsets, rule, ray.get(shared), probabilities_of(numbered[0]))
                _write(path, rows, found, _REASONS[rule.method])
            return {"kept": int(np.count_nonzero(_kept(path)))}

        return sum(
            result["kept"]
            for result in map_unordered(decide, self._numbered, f"select by {rule.method}", rows=self._pieces.num_rows)
        )

    def decisions(self, rule: Rule) -> Iterator[pa.Table]:
        """Yield what was decided, partition by partition."""
        for part in range(len(self._pieces.partitions)):
            yield pq.read_table(self._decisions(rule) / _part_name(part))

    def compare(self, chosen: Rule, others: dict[str, Rule]) -> dict[str, dict[str, float]]:
        """Measure what is left of all faces, by the chosen rule and by others.

        Returns:
            for "all", "chosen" and every other name: faces; mean_cosine, of a face to the other faces of its identity
            (identities of two or more, mean over faces); for the others also shared, of the chosen faces.
        """
        folder = self._decisions(chosen)
        contexts = ray.put({name: self._context(rule) for name, rule in others.items()})
        probabilities_of = {name: self._probabilities(rule) for name, rule in others.items()}

        def compare(numbered: tuple[int, Partition]) -> dict[str, Any]:
            torch.set_num_threads(1)
            part, partition = numbered
            rows, offsets = read_partition(partition)
            ours = _kept(str(folder / _part_name(part)))
            masks = {"all": np.ones(len(ours), bool), "chosen": ours}
            for name, context in ray.get(contexts).items():
                own = probabilities_of[name](part)
                masks[name] = select_rows(rows, offsets, others[name], context, own).kept
            sums = {name: _pairwise_cosine_sum(rows.embeddings, offsets, mask) for name, mask in masks.items()}
            return {
                "part": part,
                "sums": {name: (*s, np.count_nonzero(ours & masks[name])) for name, s in sums.items()},
            }

        results = sorted(
            map_unordered(compare, self._numbered, "compare methods", rows=self._pieces.num_rows),
            key=lambda result: result["part"],
        )
        totals = {name: np.sum([result["sums"][name] for result in results], axis=0) for name in results[0]["sums"]}
        found = {
            name: {"faces": int(faces), "mean_cosine": float(cosines / max(1, paired)), "shared": float(shared / faces)}
            for name, (faces, paired, cosines, shared) in totals.items()
        }
        for name in ("all", "chosen"):
            del found[name]["shared"]
        return found

    def _probabilities(self, rule: Rule) -> Callable[[int], NDArray[np.float64] | None]:
        """What gives a task the probabilities of a partition: for diffprob, from files that are written once."""
        if rule.method != "diffprob":
            return lambda part: None
        assert rule.head is not None
        assert rule.scale is not None
        name = hashlib.sha256(json.dumps([rule.head, rule.scale]).encode()).hexdigest()[:16]
        folder = self._folder / f"probabilities-{name}"
        keep_probabilities(folder, self._pieces.partitions, Path(rule.head), rule.scale)
        return lambda part: read_probabilities(folder, part)

    def _decisions(self, rule: Rule) -> Path:
        return self._folder / hashlib.sha256(json.dumps(asdict(rule)).encode()).hexdigest()[:16]

    def _context(self, rule: Rule) -> Context:
        labels, sizes = self._pieces.labels, self._pieces.sizes
        if rule.method in ("random", "herding"):
            assert rule.keep is not None
            return Context(labels=labels, quota=quotas(sizes, rule.keep, rule.min_images))
        if rule.global_weight and rule.method == "face_nms" and self._direction is None:
            self._direction = self._mean_direction()
        return Context(labels=labels, direction=self._direction if rule.global_weight else None)

    def _mean_direction(self) -> NDArray[np.float64]:
        """The mean of all unit embeddings, (D,)."""

        def add(numbered: tuple[int, Partition]) -> dict[str, Any]:
            embeddings = read_partition(numbered[1])[0].embeddings
            return {"part": numbered[0], "sum": sum(units.sum(axis=0) for units in _units(embeddings))}

        results = sorted(
            map_unordered(add, self._numbered, "average embeddings", rows=self._pieces.num_rows),
            key=lambda result: result["part"],
        )
        total: NDArray[np.float64] = np.sum([result["sum"] for result in results], axis=0)
        return total / self._pieces.num_rows

    def _sample(self, rule: Rule) -> tuple[Rows, Ints, NDArray[np.float64] | None] | None:
        """About 50,000 images: whole identities of a few random partitions; for diffprob also their probabilities.

        Identities of more than a tenth of that are left out, for one of them would be all that is looked at; None where
        there are no others.
        """
        probabilities_of = self._probabilities(rule)
        order = np.random.default_rng(rule.seed).permutation(len(self._numbered))
        budget = _SAMPLE_FACES // min(len(order), _SAMPLE_PIECES)

        def some(numbered: tuple[int, Partition]) -> dict[str, Any]:
            return _sample_identities(*numbered, budget, rule.seed, probabilities_of(numbered[0]))

        for first in range(0, len(order), _SAMPLE_PIECES):
            few = [self._numbered[part] for part in np.sort(order[first : first + _SAMPLE_PIECES])]
            parts = sorted(map_unordered(some, few, "sample identities"), key=lambda result: result["part"])
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "part"}
            if len(columns["labels"]):
                rows = Rows(pa.array([], pa.string()), columns["labels"], columns["embeddings"])
                return rows, np.r_[0, np.cumsum(columns["sizes"])], columns.get("probabilities")
        return None


def _sample_identities(
    part: int, partition: Partition, budget: int, seed: int, probabilities: NDArray[np.float64] | None
) -> dict[str, Any]:
    rows, offsets = read_partition(partition)
    sizes = np.diff(offsets)
    few = some_identities(sizes, budget, _SAMPLE_FACES // 10, np.random.default_rng([seed, part]))
    places = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in few] or [np.zeros(0, np.int64)])
    found = {"labels": rows.labels[places], "embeddings": rows.embeddings[places], "sizes": sizes[few]}
    return {"part": part, **found, **({} if probabilities is None else {"probabilities": probabilities[places]})}


def _at(rule: Rule, place: float) -> Rule:
    """The rule with the threshold at a place from -1, which keeps the least, to 1."""
    return replace(rule, threshold=threshold_at(place) if rule.method == "diffprob" else place)


def _part_name(part: int) -> str:
    return f"part-{part:06d}.parquet"


def _kept(path: str) -> NDArray[np.bool_]:
    return pq.read_table(path, columns=["kept"])["kept"].to_numpy()


def _write(path: str, rows: Rows, found: Selection, reason: str) -> None:
    by = pa.array(np.maximum(found.suppressed_by, 0), mask=found.suppressed_by < 0)
    columns = [
        rows.keys,
        pa.array(rows.labels),
        pa.array(found.kept),
        pa.array(found.score),
        rows.keys.take(by),
        pa.array(np.where(found.kept, "kept", reason), pa.string()),
    ]
    with atomic_stream(path) as stream:
        pq.write_table(pa.table(columns, schema=SCHEMA), stream)


def _units(embeddings: Floats) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(embeddings), _BLOCK):
        yield unit_rows(embeddings, np.arange(start, min(start + _BLOCK, len(embeddings))))


def _project(embeddings: Floats, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) f . direction of the unit embeddings f."""
    return np.concatenate([units @ direction for units in _units(embeddings)])


def _pairwise_cosine_sum(embeddings: Floats, offsets: Ints, mask: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Of the faces in mask: how many; those with others of their identity; the sum of their mean cosines to them.

    Within n unit vectors f, the cosines of all pairs add up to |sum f|^2 - n.
    """
    identity = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    sums = np.zeros((len(offsets) - 1, embeddings.shape[1]))
    done = 0
    for units in _units(embeddings):
        here = slice(done, done + len(units))
        done += len(units)
        np.add.at(sums, identity[here][mask[here]], units[mask[here]])
    count = np.bincount(identity[mask], minlength=len(sums))
    pairs = np.einsum("id,id->i", sums, sums) - count
    several = count > 1
    return int(count.sum()), int(count[several].sum()), float((pairs[several] / (count[several] - 1)).sum())
