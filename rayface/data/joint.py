"""Several dataset directories as one: their labels, index, description and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from rayface.data.directory import Part
from rayface.data.index import SOURCE_LABEL, concatenate, looked_up, to_index
from rayface.data.label_join import Join, LabelJoin, Labelled, join_labels
from rayface.data.manifest import Description, digest_of
from rayface.data.shards.samples import SampleIndex

_T = TypeVar("_T")


def distinct_names(roots: Sequence[str]) -> list[str]:
    """Return the shortest endings of paths that differ; numbers if the paths themselves do not differ."""
    # The part of a URI before @ may be a password, and the part after ? are options.
    parts = [root.partition("?")[0].partition("://")[2].rpartition("@")[2] if "://" in root else root for root in roots]
    split = [part.strip("/").split("/") for part in parts]
    for depth in range(1, min(map(len, split)) + 1):
        names = ["/".join(part[-depth:]) for part in split]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(roots))]


def join_parts(parts: Sequence[Part], mode: Join | None) -> LabelJoin:
    """Return one label space; directories are named by the endings of their paths."""
    return join_labels(
        [
            Labelled(
                name=name,
                identities=part.identities,
                num_classes=part.manifest.num_classes,
                labels=part.columns["label"],
            )
            for name, part in zip(distinct_names([part.root for part in parts]), parts, strict=True)
        ],
        mode,
    )


def join_indices(parts: list[Part], label_maps: list[np.ndarray | None]) -> SampleIndex:
    """Return the index of all parts, whose columns are emptied; `label_maps` as in LabelJoin.maps."""
    lengths = [len(part) for part in parts]
    columns = concatenate([part.columns for part in parts])
    if any(label_map is not None for label_map in label_maps):
        columns.setdefault(SOURCE_LABEL, columns["label"])
        columns["label"] = columns["label"].copy()
    start = num_shards = 0
    for part, length, label_map in zip(parts, lengths, label_maps, strict=True):
        rows = slice(start, start := start + length)
        shard = columns["shard"][rows]
        shard += np.int32(num_shards)  # in place: `columns["shard"][rows] += ...` would copy
        num_shards += len(part.manifest.shards)
        if label_map is not None:
            columns["label"][rows] = looked_up(label_map, columns["label"][rows])
    return to_index(columns)


def join_descriptions(parts: Sequence[Part]) -> Description:
    """Return the description of all parts; a mixture is only as well shuffled as its worst part."""
    manifests = [part.manifest for part in parts]
    return Description(
        name="+".join(manifest.name for manifest in manifests),
        image_size=_common([manifest.image_size for manifest in manifests]),
        layout=_common([manifest.layout for manifest in manifests]) or "by_identity",
        licence=_listed([manifest.licence for manifest in manifests]),
        source=_listed([manifest.source for manifest in manifests]),
        parent=manifests[0].parent if len(parts) == 1 else None,
        created_by=_listed([manifest.created_by for manifest in manifests]),
    )


def _common(values: Sequence[_T]) -> _T | None:
    return values[0] if all(value == values[0] for value in values) else None


def _listed(values: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def joint_digest(parts: Sequence[Part], joined: LabelJoin) -> str:
    """Return the sha256 over the directories' digests and label maps; for one directory, its own digest."""
    digests = [digest_of(part.manifest) for part in parts]
    if len(parts) == 1 and joined.maps[0] is None:
        return digests[0]
    digest = hashlib.sha256("\n".join([*digests, str(joined.mode)]).encode())
    for label_map in joined.maps:
        digest.update(b"" if label_map is None else label_map.tobytes())
    return digest.hexdigest()
