"""Streams for PyTorch and webdataset: every image once, whatever the number of workers and ranks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rayface.data import image_stream
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.synth import synthesize
from rayface.storage import DataError
from tests.data.shard_files import patch

IMAGES = 25  # not divisible by the numbers of workers and ranks


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("drawn") / "set"
    synthesize(out, identities=5, images_per_identity=5, image_size=32, shard_size=20_000)
    return open_dataset(out)


def first_pixels(pixels: np.ndarray) -> torch.Tensor:
    """A fingerprint of an image in place of its pixels."""
    return torch.from_numpy(pixels.reshape(-1).astype(np.int64).cumsum()[-1:])


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_webdataset_pipeline_of_two_ranks_and_any_workers_yields_every_image_once(
    drawn: Dataset, workers: int, shuffle: bool
) -> None:
    found: Counter[tuple[str, int]] = Counter()
    for rank in range(2):
        pipeline = drawn.to_webdataset(shuffle=shuffle, rank=rank, world_size=2, window_images=7)
        samples = DataLoader(pipeline, batch_size=None, num_workers=workers)
        found.update((sample["__key__"], int(sample["cls"])) for sample in samples)
    assert found == Counter(zip(drawn.keys(), drawn.index.label.tolist(), strict=True))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_torch_stream_of_any_workers_yields_decoded_images_once_and_as_many_as_its_length(
    drawn: Dataset, workers: int
) -> None:
    images, labels = zip(*DataLoader(drawn.to_torch(), batch_size=None, num_workers=workers), strict=True)
    assert len(images) == IMAGES == len(drawn.to_torch())
    assert sorted(labels) == sorted(drawn.index.label.tolist())
    batch = torch.stack(images)
    assert (batch.shape, batch.dtype) == ((IMAGES, 3, 32, 32), torch.float32)
    assert -1 <= batch.min() < 0 < batch.max() <= 1
    assert len(torch.unique(batch.flatten(1), dim=0)) == IMAGES


def test_order_with_shuffle_depends_on_seed_and_epoch_only(drawn: Dataset) -> None:
    def keys(seed: int, epoch: int) -> list[str]:
        pipeline = drawn.to_webdataset(shuffle=True, seed=seed, window_images=10)
        pipeline.set_epoch(epoch)
        return [sample["__key__"] for sample in pipeline]

    assert keys(0, 0) == keys(0, 0)
    orders = {tuple(keys(*case)) for case in [(0, 0), (0, 1), (1, 0)]}
    assert len(orders) == 3
    assert [sample["__key__"] for sample in drawn.to_webdataset()] == drawn.keys()


def test_epoch_set_between_epochs_reaches_persistent_workers(drawn: Dataset) -> None:
    stream = drawn.to_torch(shuffle=True, transform=first_pixels)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = [int(image) for image, _ in loader]
    stream.set_epoch(1)
    second = [int(image) for image, _ in loader]
    assert first != second
    assert sorted(first) == sorted(second)


def test_equal_parts_give_every_worker_of_every_rank_the_same_number_of_images(drawn: Dataset) -> None:
    counts = []
    for rank in range(2):
        stream = drawn.to_torch(equal_parts=True, rank=rank, world_size=2)
        counts.append(sum(1 for _ in DataLoader(stream, batch_size=None, num_workers=3)))
    assert counts == [12, 12]


def test_ranks_of_torch_distributed_are_the_default(drawn: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_stream.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(image_stream.dist, "get_world_size", lambda: 2)
    found: list[str] = []
    for rank in range(2):
        monkeypatch.setattr(image_stream.dist, "get_rank", lambda rank=rank: rank)
        found += [sample["__key__"] for sample in drawn.to_webdataset()]
    assert found == drawn.keys()


def test_pipeline_is_followed_by_stages_of_webdataset(drawn: Dataset) -> None:
    image, label = next(iter(drawn.to_webdataset().decode("rgb8").to_tuple("jpg", "cls")))
    assert (image.shape, label) == ((32, 32, 3), int(drawn.index.label[0]))


def test_joint_labels_of_two_directories_are_those_of_the_stream(drawn: Dataset, tmp_path: Path) -> None:
    synthesize(tmp_path / "other", identities=3, images_per_identity=2, image_size=32, seed=1)
    both = open_dataset([drawn.roots[0], tmp_path / "other"], join="separate")
    labels = [label for _, label in both.to_torch(transform=first_pixels)]
    assert sorted(set(labels)) == list(range(8))
    assert len(labels) == IMAGES + 6


def test_corrupt_image_is_left_out_up_to_the_limit(
    drawn: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthesize(tmp_path / "set", identities=2, images_per_identity=4, image_size=32)
    dataset = open_dataset(tmp_path / "set")
    patch(Path(dataset.shards[0].path), int(dataset.index.offset[3]) + 512, b"no picture")
    left = list(dataset.to_torch(max_corrupt_fraction=0.2))
    assert len(left) == 7
    assert dataset.keys()[3] in caplog.text
    with pytest.raises(DataError, match=r"1 of 8 images are corrupt, more than data.max_corrupt_fraction=0.1"):
        list(dataset.to_torch(max_corrupt_fraction=0.1))


def test_images_without_a_common_size_need_one_and_a_rank_must_be_in_the_world(drawn: Dataset) -> None:
    from dataclasses import replace

    mixed = replace(drawn, about=replace(drawn.about, image_size=None))
    with pytest.raises(ValueError, match=r"^image_size: the images of .* are not squares of one size: give it$"):
        mixed.to_torch()
    assert next(iter(mixed.to_torch(image_size=16)))[0].shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"^rank 2: must be from 0 to world_size - 1 = 1$"):
        drawn.to_torch(rank=2, world_size=2)
