"""Dataset of clustered images, labelled by their clusters."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayface.arrays import Ints
from rayface.curate.prune.pruned_dataset import refuse_missing, write_dataset
from rayface.curate.prune.result import DatasetCounts
from rayface.data.dataset import Dataset
from rayface.data.selection import Selection


def write_clustered(
    root: str, source: Dataset, keys: pa.ChunkedArray, clusters: Ints, *, write_shards: bool
) -> DatasetCounts | None:
    """Write the images in clusters as a dataset, its identities "cluster-0000000", ...; None if all noise.

    Args:
        root: path or URI of the dataset.

    Raises:
        DataError: a key is not in the source.
    """
    places = source.find(keys.chunks)
    refuse_missing(places, keys.chunks, source, "clustering.data")
    kept = np.flatnonzero(clusters >= 0)
    if not len(kept):
        return None
    kept = kept[np.argsort(places[kept])]
    num_classes = int(clusters.max()) + 1
    selection = Selection(
        source=source,
        rows=places[kept],
        labels=clusters[kept].astype(np.int32),
        identities=tuple(f"cluster-{number:07d}" for number in range(num_classes)),
        num_classes=num_classes,
    )
    return write_dataset(root, selection, len(places), write_shards=write_shards)
