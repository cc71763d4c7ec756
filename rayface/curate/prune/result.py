"""Result of a prune job, and the check that all its files exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from rayface.job_folder import read_job_result
from rayface.storage import AnyPath, DataError
from rayface.storage.parquet import num_rows, read_table
from rayface.tracking.job import Tracked

CORE_SET = "core_set.parquet"
RESULT = "prune.json"  # written last
REPORT = "report.html"
FOUND = "found"
_DATASET, _INDEX = "dataset.json", "index.parquet"
Values = Mapping[str, Any]
"""A JSON object."""


@dataclass(frozen=True, kw_only=True)
class SelectionFigures:
    """Figures of a selection.

    Attributes:
        faces: number of images kept.
        mean_cosine: of an image to the other kept images of its identity; identities of two or more, mean over images.
        shared: share of its images that are in the core set too.
    """

    faces: int
    mean_cosine: float
    shared: float


@dataclass(frozen=True, kw_only=True)
class DatasetCounts:
    """Counts of a core set's dataset; `not_embedded`: images of its source that are not in the core set."""

    images: int
    classes: int
    shards: int
    not_embedded: int


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of a prune job.

    Attributes:
        faces_in, faces_cleaned, faces_out: images embedded, dropped by cleaning, kept.
        identities: identities after cleaning.
        identities_compared_in_part: identities too large to compare all pairs of their images.
    """

    faces_in: int
    faces_cleaned: int
    faces_out: int
    identities: int
    identities_compared_in_part: int = 0


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """Origin of a result; `config` decided it."""

    seconds: float
    embeddings: str
    config: Values
    created_by: str


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """Result of a prune job; prune.json has the fields, with those of `counts` and `job` at the top level.

    Attributes:
        keep_wanted: configured share of the images to keep, if any.
        keep: share that was kept, of the images after cleaning.
        found: number of findings of cleaning, by table.
        mean_cosine_before, mean_cosine_after: mean cosine of an image to the others of its identity.
        baselines: figures of other methods at the same number of images.
        tracked: tracking of the job that has just run; None if the result already existed.
        folder: output folder of the job; not part of prune.json.
    """

    method: str
    threshold: float | None
    keep_wanted: float | None
    keep: float
    counts: ImageCounts
    found: dict[str, int]
    mean_cosine_before: float
    mean_cosine_after: float
    baselines: dict[str, SelectionFigures]
    stage_seconds: dict[str, float]
    dataset: DatasetCounts | None = None
    job: JobFacts
    tracked: Tracked | None = None
    folder: AnyPath = field(default=Path(), compare=False)

    @classmethod
    def from_dict(cls, values: Values) -> Self:
        """Return the result of a parsed prune.json.

        Raises:
            TypeError, KeyError, AttributeError: a value is missing or has another type.
        """
        known = _fields_of(cls, values)
        known["counts"] = ImageCounts(**_fields_of(ImageCounts, values))
        known["job"] = JobFacts(**_fields_of(JobFacts, values))
        known["baselines"] = {name: SelectionFigures(**own) for name, own in values["baselines"].items()}
        if "dataset" in known:
            known["dataset"] = DatasetCounts(**known["dataset"])
        return cls(**known)

    def as_dict(self) -> dict[str, object]:
        """Return the content of prune.json, and where the job was tracked."""
        found = asdict(self)
        del found["tracked"], found["folder"]
        found |= found.pop("counts") | found.pop("job")
        if found["dataset"] is None:
            del found["dataset"]
        if self.tracked is not None:
            found |= self.tracked.as_dict()
        return found

    def to_pandas(self) -> pd.DataFrame:
        """Return the decision about every image: key, label, kept, score, suppressed_by, reason."""
        return read_table(self.folder / CORE_SET).to_pandas()


def _fields_of(kind: type, values: Values) -> dict[str, Any]:
    return {own.name: values[own.name] for own in fields(kind) if own.name in values}


def read_result(root: AnyPath) -> PruneResult | None:
    """Return the result of a finished job, or None if a file of it is missing.

    Raises:
        DataError: prune.json is corrupt.
    """
    found = read_job_result(root / RESULT, PruneResult.from_dict, partial(_is_complete, root))
    return None if found is None else replace(found, folder=root)


def _is_complete(root: AnyPath, result: PruneResult) -> bool:
    names = [CORE_SET, REPORT, *(f"{FOUND}/{name}.parquet" for name in result.found)]
    return (
        all((root / name).is_file() for name in names)
        and has_rows(root / CORE_SET, result.counts.faces_in)
        and (result.dataset is None or has_dataset(root))
    )


def has_rows(path: AnyPath, count: int) -> bool:
    """Return whether a file is parquet with this number of rows."""
    try:
        return num_rows(path) == count
    except (pa.ArrowException, OSError, DataError):
        return False


def has_dataset(root: AnyPath) -> bool:
    """Return whether a folder has all files of a dataset; shards that it refers to elsewhere are not looked at."""
    if not all((root / name).is_file() for name in (_DATASET, _INDEX)):
        return False
    shards = json.loads((root / _DATASET).read_text())["shards"]
    own = [(root / shard["path"], shard["num_bytes"]) for shard in shards if "/" not in shard["path"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in own)
