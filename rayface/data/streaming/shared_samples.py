"""Sample index in Ray's object store: opened once by the driver, one copy on each node that reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray

from rayface.data.dataset import Dataset
from rayface.data.index import SOURCE_LABEL, to_index
from rayface.data.shards.copies import copy_rules
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import SampleIndex
from rayface.data.streaming.label_groups import LabelGroups, group_by_label


@dataclass(frozen=True)
class SharedSamples:
    """References to the shard paths and index columns of a dataset, and to its images by identity; small to send.

    The process that calls `share` owns the objects, so workers may join and leave. `copied`: the CopyRules, None to
    copy no shards.
    """

    paths: ray.ObjectRef
    columns: dict[str, ray.ObjectRef] = field(hash=False)
    grouped: ray.ObjectRef | None = None
    copied: ray.ObjectRef | None = None

    def get(self) -> tuple[list[str], SampleIndex]:
        """Return shard paths and index; the columns are read-only views of this node's object store."""
        paths, *columns = ray.get([self.paths, *self.columns.values()])
        return paths, to_index(dict(zip(self.columns, columns, strict=True)))

    def groups(self) -> LabelGroups | None:
        """Return the images of each identity, views of this node's object store; None if they were not shared."""
        return None if self.grouped is None else ray.get(self.grouped)

    def reader(self) -> tuple[SampleReader, SampleIndex, LabelGroups | None]:
        """Return a reader of the shards, index and groups for a read task."""
        shards, index = self.get()
        rules = None if self.copied is None else ray.get(self.copied)
        return SampleReader(shards, rules), index, self.groups()


def share(dataset: Dataset, *, grouped: bool = False, cache_size: int | None = None) -> SharedSamples:
    """Move a dataset's index into the object store; call it once.

    Afterwards `dataset.index` is a view of it, valid until Ray shuts down. Memory: one additional column while copying,
    and that of `group_by_label`.

    Args:
        grouped: also share the images of each identity, which an order of pairs draws from.
        cache_size: maximum bytes of the copies of an object store's shards on each node; None: no copies.
    """
    index, columns = dataset.index, {}
    own_labels = index.source_label is not index.label
    for name in ("shard", "offset", "num_bytes", "label", *([SOURCE_LABEL] if own_labels else [])):
        columns[name] = ray.put(getattr(index, name))
        setattr(index, name, ray.get(columns[name]))  # frees this process's own copy
    if not own_labels:
        index.source_label = index.label
    groups = ray.put(group_by_label(index.label, dataset.num_classes)) if grouped else None
    rules = None if cache_size is None else ray.put(copy_rules(dataset.shards, cache_size))
    return SharedSamples(ray.put(dataset.shard_paths()), columns, groups, rules)
