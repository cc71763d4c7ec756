"""Result of a cluster job, and the check that all its files exist."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from rayface.arrays import Ints
from rayface.curate.cluster.assign import AssignCounts
from rayface.curate.cluster.label_noise import LabelNoise
from rayface.curate.cluster.metrics import NOISE, ClusterScores
from rayface.curate.prune.result import DatasetCounts, JobFacts, Values, has_dataset, has_rows
from rayface.job_folder import read_job_result
from rayface.storage import AnyPath
from rayface.storage.parquet import read_table
from rayface.tracking.job import Tracked

LABELS = "labels.parquet"
RESULT = "cluster.json"  # written last
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class ClusterCounts:
    """Counts of a cluster job.

    Attributes:
        images: images clustered.
        clusters: clusters of at least clustering.min_images.
        noise: images in none.
        largest: images of the largest cluster.
    """

    images: int
    clusters: int
    noise: int
    largest: int


def counts_of(clusters: Ints) -> ClusterCounts:
    """Return the counts of the clusters (N,) of all images."""
    sizes = np.bincount(clusters[clusters >= 0])
    return ClusterCounts(
        images=len(clusters),
        clusters=int(np.count_nonzero(sizes)),  # a stream's numbers have gaps
        noise=int(np.count_nonzero(clusters == NOISE)),
        largest=int(sizes.max(initial=0)),
    )


@dataclass(frozen=True, kw_only=True)
class ClusterResult:
    """Result of a cluster job, the content of cluster.json.

    Attributes:
        threshold: cosine from which two single images are one person, given, calibrated or estimated.
        threshold_from: "threshold", "calibrate" or "estimate".
        base: median cosine of random pairs below the threshold, that of two persons.
        neighbour_recall: share of the exact neighbours of some images that the search found; None: it was exact.
        assigned: images of known identities; None without clustering.assign.
        label_noise: estimated, with clustering.within; else None.
        scores: against the labels of the embeddings, if these are of two identities or more.
        tracked: tracking of the job that has just run; None if the result already existed.
        folder: output folder of the job; not part of cluster.json.
    """

    method: str
    threshold: float
    threshold_from: str
    base: float
    counts: ClusterCounts
    scores: ClusterScores | None
    stage_seconds: dict[str, float]
    neighbour_recall: float | None = None
    assigned: AssignCounts | None = None
    label_noise: LabelNoise | None = None
    dataset: DatasetCounts | None = None
    job: JobFacts
    tracked: Tracked | None = None
    folder: AnyPath = field(default=Path(), compare=False)

    @classmethod
    def from_dict(cls, values: Values) -> Self:
        """Return the result of a parsed cluster.json.

        Raises:
            TypeError, KeyError, AttributeError: a value is missing or has another type.
        """
        known = {own.name: values[own.name] for own in fields(cls) if own.name in values}
        known["counts"] = ClusterCounts(**known["counts"])
        known["job"] = JobFacts(**known["job"])
        known["scores"] = ClusterScores(**known["scores"]) if known["scores"] else None
        known["assigned"] = AssignCounts(**known["assigned"]) if known.get("assigned") else None
        known["label_noise"] = LabelNoise(**known["label_noise"]) if known.get("label_noise") else None
        known["dataset"] = DatasetCounts(**known["dataset"]) if known["dataset"] else None
        return cls(**known)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of cluster.json, and where the job was tracked."""
        found = asdict(self)
        del found["tracked"], found["folder"]
        if self.tracked is not None:
            found |= self.tracked.as_dict()
        return found

    def to_pandas(self) -> pd.DataFrame:
        """Return the cluster of every image: key, cluster (-1: noise), and confidence but for a stream."""
        return read_table(self.folder / LABELS).to_pandas()


def read_result(root: AnyPath) -> ClusterResult | None:
    """Return the result of a finished job, or None if a file of it is missing.

    Raises:
        DataError: cluster.json is corrupt.
    """
    found = read_job_result(root / RESULT, ClusterResult.from_dict, partial(_is_complete, root))
    return None if found is None else replace(found, folder=root)


def _is_complete(root: AnyPath, result: ClusterResult) -> bool:
    return (
        ("stream" in result.job.config or (root / REPORT).is_file())  # a stream has no report
        and has_rows(root / LABELS, result.counts.images)
        and (result.dataset is None or has_dataset(root))
    )
