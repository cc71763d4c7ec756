"""Recipes on real faces: training, evaluation, and the sets that are made of others for it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_image
from rayface.data.selection import Selection, write_selection
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.writer import write_dataset
from rayface.files import exclusive_folder
from rayface.storage import DataError
from recipes.recipe import TESTS, Recipe, write_experiment

CELEBA = ["$FACES/celeba_wild", "$FACES/celeba_small"]
# Config keys of every training, beside the preset mini.
FACES = {
    "data.train": CELEBA,
    "data.join": "labels",
    "backbone.width": 0.5,
    "train.batch_size": 128,
    "train.epochs": 4,
    "train.num_workers": 1,
    "tracking.enabled": False,
}


def join_celeba(faces: Path, out: Path) -> None:
    """Write celeba as one set with one label space, which other sets can be joined to."""
    source = _celeba(faces)
    _write_labelled(source, source.index.label, source.num_classes, out)


def split_identities(faces: Path, out: Path) -> None:
    """Write celeba with conflicting labels: 40 % of the images of each identity that has 4 or more get a label of
    their own, as if a crawl had met that person under two names."""
    source = _celeba(faces)
    labels = source.index.label.astype(np.int64)
    random, new = np.random.default_rng(0), source.num_classes
    for label in range(source.num_classes):
        images = np.flatnonzero(labels == label)
        if len(images) >= 4:
            labels[random.permutation(images)[: round(0.4 * len(images))]] = new
            new += 1
    _write_labelled(source, labels, new, out)


def _celeba(faces: Path) -> Dataset:
    return open_dataset([str(faces / "celeba_wild"), str(faces / "celeba_small")], join="labels")


def _write_labelled(source: Dataset, labels: NDArray[Any], num_classes: int, out: Path) -> None:
    rows = np.arange(len(labels))
    selected = Selection(
        source=source, rows=rows, labels=labels.astype(np.int32), identities=None, num_classes=num_classes
    )
    out.mkdir(parents=True, exist_ok=True)
    write_selection(str(out), selected, name=out.name)


def shrink_lfw(faces: Path, out: Path) -> None:
    """Write the images of lfw_pairs scaled down to 20 pixels and up again."""
    source = open_dataset(str(faces / "lfw_pairs"))

    def samples() -> Iterator[tuple[str, int, bytes]]:
        for sample in read_samples(source.shard_paths(), source.index):
            assert isinstance(sample, Sample)
            small = cv2.resize(decode_image(sample.jpeg), (20, 20), interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)
            yield sample.key, sample.label, simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95)

    identities = source.identities or [str(label) for label in range(source.num_classes)]
    write_dataset(out, samples(), name=out.name, identities=identities, image_size=(112, 112))


MADE: dict[str, Callable[[Path, Path], None]] = {
    "celeba_joined": join_celeba,
    "celeba_split": split_identities,
    "lfw_small": shrink_lfw,
}
"""Sets that are made of real faces, which stages name as $MADE/NAME; the functions take FACES and the new folder."""


def staged(recipe: Recipe) -> list[Mapping[str, Any]]:
    """Return the stages on real faces, each row's training followed by its evaluations."""
    stages: list[Mapping[str, Any]] = []
    for stage in recipe.faces:
        stages.append(stage)
        if (name := stage["name"]) in recipe.rows:
            tests = {test: TESTS[test][1] for test in recipe.tests}
            stages += [
                {"name": f"{name}_{test}", "evaluate": {"model": f"${{{name}}}", **keys}}
                for test, keys in tests.items()
            ]
    return stages


def missing(recipe: Recipe, seed: int) -> list[Mapping[str, Any]]:
    """Return the stages of the rows of which no result with this seed is recorded, and those that they refer to."""
    recorded = {(each["row"], each["test"]) for each in recipe.measured if each["seed"] == seed}
    open_rows = [row for row in recipe.rows if any((row, test) not in recorded for test in recipe.tests)]
    kept: list[Mapping[str, Any]] = []
    for stage in reversed(staged(recipe)):
        wanted = [row for row in open_rows if stage["name"] in (row, *(f"{row}_{test}" for test in recipe.tests))]
        if wanted or f"${{{stage['name']}}}" in json.dumps(kept):
            kept.insert(0, stage)
    return kept


def run_faces(
    recipe: Recipe, stages: Sequence[Mapping[str, Any]], seed: int, faces: Path, out: Path, overrides: Sequence[str]
) -> bool:
    """Run, or resume, stages of a recipe with a seed in OUT/NAME/seed-SEED; return whether they are complete.

    A recipe and seed that another process runs is left to it.
    """
    root, made = out / recipe.name, out / "made"
    try:
        with exclusive_folder(root, f"{recipe.name}, seed {seed}", lock=f".seed-{seed}.lock"):
            for name in MADE:
                if f"$MADE/{name}" in json.dumps(stages):
                    _make(name, faces, made)
            places = {"FACES": faces.resolve(), "MADE": made.resolve()}
            file = write_experiment(root / f"seed-{seed}.json", FACES, stages, "mini", places)
            settings = [f"train.seed={seed}", f"prune.seed={seed}", *overrides]
            command = ["run", str(file), *settings, f"--out={root / f'seed-{seed}'}"]
            done = subprocess.run([sys.executable, "-m", "rayface.cli", *command], stdout=sys.stderr, check=False)
    except DataError as error:
        print(error, file=sys.stderr)
        return True
    return not done.returncode


def _make(name: str, faces: Path, made: Path) -> None:
    with exclusive_folder(made, f"the set {name}", lock=f".{name}.lock"):
        if not (made / name / "dataset.json").exists():
            MADE[name](faces, made / name)
