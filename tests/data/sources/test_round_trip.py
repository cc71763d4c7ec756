"""Real faces through every format, folder, .rec, shards, .bin, folder: pixels and labels are equal."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rayface.cli.command_line import _outcome
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from tests.data.sources.rec_files import image_content, insightface, records, save

Labelled = tuple[int, bytes]


def run(*arguments: object) -> None:
    assert _outcome(["convert", *map(str, arguments)]) == (0, "")


def samples(dataset: Dataset, count: int | None = None) -> list[Sample]:
    found = read_samples(dataset.shard_paths(), dataset.index.select(slice(0, count)))
    return [sample for sample in found if isinstance(sample, Sample)]


def people(images: Sequence[tuple[object, bytes]]) -> list[list[bytes]]:
    """The images of each person, without their labels."""
    by_person: dict[object, list[bytes]] = defaultdict(list)
    for label, image in images:
        by_person[label].append(image)
    return sorted(sorted(own) for own in by_person.values())


def images_in(folder: Path) -> list[tuple[str, bytes]]:
    """(name of its folder, bytes) of every image of a folder."""
    return [(path.parent.name, path.read_bytes()) for path in sorted(folder.glob("*/*"))]


def write_pairs(path: Path, dataset: Dataset) -> None:
    """Pairs of neighbours of each person, which connect all of its images, and pairs of neighbours of two persons."""
    by_label: dict[int, list[str]] = defaultdict(list)
    for key, label in zip(dataset.keys(), dataset.index.label.tolist(), strict=True):
        by_label[label].append(f"{key}.jpg")
    rows = [(a, b, 1) for keys in by_label.values() for a, b in pairwise(keys)]
    rows += [(a[0], b[0], 0) for a, b in pairwise(by_label.values())]
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(("path_a", "path_b", "is_same", "fold"))
        csv.writer(file).writerows((*row, number % 10) for number, row in enumerate(rows))


@pytest.mark.parametrize("header", ["label", "labels"])
def test_real_faces_through_every_format_keep_their_bytes_and_persons(faces: Path, tmp_path: Path, header: str) -> None:
    original = [(sample.label, sample.jpeg) for sample in samples(open_dataset(faces / "celeba_small"), 300)]
    for number, (label, image) in enumerate(original):
        folder = tmp_path / "folder" / f"{label:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.jpg").write_bytes(image)
    listed = [(int(name), image) for name, image in images_in(tmp_path / "folder")]
    assert len(listed) == 300

    if header == "label":
        written = insightface(listed)
    else:
        written = records([image_content([label, 0.0], number, image) for number, (label, image) in enumerate(listed)])
    save(tmp_path / "rec", written)
    run(tmp_path / "rec", tmp_path / "shards", "--from", "rec")
    dataset = open_dataset(tmp_path / "shards")
    new_label = {label: number for number, label in enumerate(sorted({label for label, _ in original}))}
    assert {sample.key: (sample.label, sample.jpeg) for sample in samples(dataset)} == {
        f"{number:09d}": (new_label[label], image) for number, (label, image) in enumerate(listed, header == "label")
    }

    write_pairs(tmp_path / "shards" / "pairs.csv", dataset)
    run(tmp_path / "shards", tmp_path / "faces.bin", "--to", "bin")
    run(tmp_path / "faces.bin", tmp_path / "again", "--from", "bin", "--to", "folder")
    again = images_in(tmp_path / "again")
    assert people(again) == people(original)
    pixels = {image: decode_image(image) for _, image in original}
    assert all(np.array_equal(decode_image(image), pixels[image]) for _, image in again)
