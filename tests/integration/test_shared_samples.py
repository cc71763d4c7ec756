"""The sample index in the object store of a real Ray."""

import numpy as np
import pytest
import ray

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.index import SOURCE_LABEL
from rayface.data.shards.samples import SampleIndex
from rayface.data.streaming.shared_samples import share

pytestmark = pytest.mark.usefixtures("local_ray")
COLUMNS = ("shard", "offset", "num_bytes", "label", SOURCE_LABEL)


def of_size(dataset: Dataset, count: int, *, joined: bool) -> SampleIndex:
    """Make the index so long that its columns are stored, not sent along."""
    columns = {name: np.resize(getattr(dataset.index, name), count) for name in COLUMNS}
    columns[SOURCE_LABEL] = columns["label"] + 1 if joined else columns["label"]
    return SampleIndex(**columns)


@pytest.mark.parametrize("joined", [False, True])
def test_shared_index_is_one_copy_for_owner_and_tasks(drawn, joined):
    dataset = open_dataset(drawn)
    wanted, index = (of_size(dataset, 100_000, joined=joined) for _ in range(2))
    object.__setattr__(dataset, "index", index)
    shared = share(dataset)
    assert len(shared.columns) == (5 if joined else 4)

    @ray.remote
    def seen() -> tuple[list[str], list[np.ndarray], list[bool], bool]:
        paths, index = shared.get()
        columns = [getattr(index, name) for name in COLUMNS]
        return paths, columns, [column.flags.writeable for column in columns], index.label is index.source_label

    paths, columns, writeable, one_label = ray.get(seen.remote())
    assert paths == dataset.shard_paths()
    assert one_label is not joined
    for name, column in zip(COLUMNS, columns, strict=True):
        own = getattr(dataset.index, name)
        assert np.array_equal(column, getattr(wanted, name))
        assert np.array_equal(own, getattr(wanted, name))
        assert not own.flags.writeable  # the store's, not this process's own
    assert not any(writeable)
