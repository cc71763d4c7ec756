"""A simulated dataset is one that rayface reads, and small on disk whatever its size."""

from pathlib import Path

import numpy as np
import pytest

from rayface.bench.simulated import Simulated, SimulatedFolders, simulate
from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples

SIZE = Simulated(images=50, identities=12, shards=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimulatedFolders:
    return simulate(tmp_path_factory.mktemp("simulated"), SIZE)


def test_simulated_dataset_opened_has_the_counts_that_were_asked_for(folders: SimulatedFolders) -> None:
    for path in (folders.dataset, folders.selection):
        dataset = open_dataset(path)
        assert (len(dataset.index), dataset.num_classes, len(dataset.shards)) == (50, 12, 4)
        assert dataset.num_classes_with_images == 12
        assert set(dataset.index.label.tolist()) == set(range(12))


def test_simulated_selection_read_at_random_gives_its_images(folders: SimulatedFolders) -> None:
    dataset = open_dataset(folders.selection)
    samples = read_samples(dataset.shard_paths(), dataset.index.select(np.array([49, 0, 17])))
    assert len(samples) == 3
    assert all(sample.jpeg == samples[0].jpeg for sample in samples)


def test_simulated_shards_are_links_to_one_file(folders: SimulatedFolders) -> None:
    shards = sorted(folders.dataset.glob("*.tar"))
    assert len(shards) == 4
    assert len({path.stat().st_ino for path in shards}) == 1


def test_simulate_with_one_seed_twice_draws_the_same_labels(folders: SimulatedFolders, tmp_path: Path) -> None:
    again, other = simulate(tmp_path / "a", SIZE), simulate(tmp_path / "b", SIZE, seed=1)
    labels = open_dataset(folders.selection).index.label
    assert np.array_equal(open_dataset(again.selection).index.label, labels)
    assert not np.array_equal(open_dataset(other.selection).index.label, labels)


@pytest.mark.parametrize("changes", [{"images": 11}, {"identities": 0}, {"shards": 0}, {"shards": 51}])
def test_simulate_with_numbers_of_no_dataset_raises_one_line(changes: dict[str, int], tmp_path: Path) -> None:
    size = Simulated(**({"images": 50, "identities": 12, "shards": 4} | changes))
    with pytest.raises(ValueError, match=r"^images \d+, identities \d+, shards \d+: there must be") as caught:
        simulate(tmp_path / "out", size)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
