"""Interface of selection methods, which decide the images of a core set."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import pyarrow as pa

from rayface.arrays import Floats, Ints
from rayface.config import PruneConfig
from rayface.curate.identities import Selection
from rayface.curate.prune.dataset_stats import DatasetStats

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Whole identities of a partition: n images, sorted by label, then by key.

    Attributes:
        keys: (n,) string.
        labels: (n,).
        embeddings: (n, D), of any norm.
        offsets: (I + 1,) first image of each identity, and n.
        part: number of the partition.
        rows: (n,) rows of these images in the partition; all of them, or those of a sample of its identities.
    """

    keys: pa.Array
    labels: Ints
    embeddings: Floats
    offsets: Ints
    part: int
    rows: Ints


class SelectionMethod(ABC, Generic[Prepared]):
    """Select the images of a core set, identity by identity.

    Subclasses are frozen dataclasses. Only their fields may decide the result: partitions may be cut
    differently, and tasks may run twice or in any order.

    Attributes:
        title: name in the log, "select by TITLE".
        reason: reason in core_set.parquet why an image is not kept.
        keys: keys of the config group `prune` that are refused unless a method that names them here is used.
        options: fields that `prune.options` sets: those for which `prune` has no key. They need defaults.
    """

    title: ClassVar[str] = "own method"
    reason: ClassVar[str] = "not selected"
    keys: ClassVar[frozenset[str]] = frozenset()
    options: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        """Return the method of `settings`, of which either `threshold` or `keep` is set; called before Ray starts.

        Raises:
            ValueError: a setting that the method cannot work with; one line that names its key.
        """

    @abstractmethod
    def prepare(self, stats: DatasetStats) -> Prepared:
        """Return the statistics of all images that `select` needs, else None; runs on the driver, for all tasks."""

    @abstractmethod
    def select(self, images: Images, prepared: Prepared) -> Selection:
        """Select among whole identities; runs in a task with one thread.

        Returns:
            kept (n,), score (n,) float32, suppressed_by (n,): the row of `images` that an image was dropped for, or -1.
        """

    def compared_in_part(self, sizes: Ints, core_set: Path) -> int:
        """Return the number of identities that were too large to compare all pairs of their images.

        Args:
            sizes: (I,) images of each identity.
            core_set: the finished core_set.parquet.
        """
        return 0

    def fingerprint(self) -> str:
        """Return a digest of the class and its fields; equal methods share their decisions on disk."""
        fields: dict[str, object] = asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses
        text = json.dumps([type(self).__module__, type(self).__qualname__, fields], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ThresholdMethod(SelectionMethod[Prepared]):
    """Method with a threshold, which can be searched for a given share of the images.

    Attributes:
        threshold: a field of subclasses; `from_settings` without `prune.threshold` sets any.
    """

    threshold: float

    @abstractmethod
    def at(self, position: float) -> Self:
        """Return the method with another threshold; `prepare` must not depend on it.

        Args:
            position: from -1, which keeps the fewest images, to 1, which keeps all; must be monotonic.
        """
