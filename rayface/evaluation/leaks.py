"""Leak certificate: which test images and identities are in the training set, by name, by bytes and by embedding."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from rayface.arrays import Bools, Floats, Ints, row_norms
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.label_join import Labelled
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, SampleIndex, ShardRows
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.rows import read_rows
from rayface.evaluation.image_rows import ImageRows
from rayface.progress import phase

_CHUNK = 512  # images hashed at a time
_ROWS = 65_536  # training embeddings compared at a time
_THREADS = 8
_EXAMPLES = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaks:
    """Test images that are in the training set, (n,) each.

    Attributes:
        by_name: images of identities whose name is in the training set; None if a directory of one of the sets has no
            names, or only label numbers.
        by_bytes: images whose file is in the training set.
        by_embedding: images with a training image at a cosine above `above`; None without embeddings.
        identities: identity of each image, (n,).
        nearest: (n,) highest cosine to a training image.
        nearest_key: key of that training image.
    """

    by_name: Bools | None
    by_bytes: Bools
    by_embedding: Bools | None
    identities: Ints
    nearest: Floats | None = None
    nearest_key: tuple[str, ...] = ()

    @property
    def leaked(self) -> Bools:
        """Whether an image leaked in any of the ways, (n,)."""
        found = self.by_bytes.copy()
        for each in (self.by_name, self.by_embedding):
            if each is not None:
                found |= each
        return found

    def counts(self) -> dict[str, dict[str, int] | None]:
        """Return the numbers of leaked images and their identities, by way; None: not examined."""
        ways = {
            "by_name": self.by_name,
            "by_bytes": self.by_bytes,
            "by_embedding": self.by_embedding,
            "any": self.leaked,
        }
        return {
            name: None if each is None else {"images": int(each.sum()), "identities": len(set(self.identities[each]))}
            for name, each in ways.items()
        }

    def examples(self, keys: list[str]) -> list[dict[str, object]]:
        """Return the most similar test and training images, of those above the cosine; `keys` are the test images'."""
        if self.by_embedding is None or self.nearest is None:
            return []
        order = np.argsort(-self.nearest, kind="stable")
        rows = order[self.by_embedding[order]][:_EXAMPLES].tolist()
        return [
            {"test": keys[row], "training": self.nearest_key[row], "cosine": float(self.nearest[row])} for row in rows
        ]


def find_leaks(tests: Mapping[str, ImageRows], training: Dataset) -> dict[str, Leaks]:
    """Search a training set for the images of several test sets, by name and by bytes; reads every image once."""
    names = _trained_names(training)
    by_bytes = _by_bytes(list(tests.values()), training)
    return {
        name: Leaks(
            by_name=_by_name(test, names),
            by_bytes=leaked,
            by_embedding=None,
            identities=test.dataset.index.label[test.rows].astype(np.int64),
        )
        for (name, test), leaked in zip(tests.items(), by_bytes, strict=True)
    }


def add_by_embedding(found: Leaks, test: Floats, training: Embeddings, *, above: float = 0.9) -> Leaks:
    """Add the leaks by embedding.

    Args:
        test: (n, D) of length 1, by the model of `training`.
        training: embeddings of the training set.
        above: cosine above which a training image counts as the same image.
    """
    nearest, keys = nearest_images(test, training)
    return replace(found, by_embedding=nearest > above, nearest=nearest, nearest_key=keys)


def _named_directories(dataset: Dataset) -> list[tuple[Sequence[str], Ints]] | None:
    """Return the names by label and the labels (n,) of each directory; None if one has only label numbers as names.

    Directories that were joined are opened again, one by one: a joint name may have its directory in front.
    """
    alone = [dataset]
    if len(dataset.roots) > 1:
        sizes = zip(dataset.roots, dataset.root_sizes(), strict=True)
        alone = [open_dataset(root, max_corrupt_fraction=1) for root, size in sizes if size]
    found = []
    for each in alone:
        labels = each.index.label
        own = Labelled(name=each.name, identities=each.identities, num_classes=each.num_classes, labels=labels)
        if own.identities is None or not own.says_names:
            return None
        found.append((own.identities, labels))
    return found


def _trained_names(training: Dataset) -> set[str] | None:
    directories = _named_directories(training)
    if directories is None:
        return None
    return {names[label] for names, labels in directories for label in np.unique(labels).tolist()}


def _by_name(test: ImageRows, trained: set[str] | None) -> Bools | None:
    directories = None if trained is None else _named_directories(test.dataset)
    if trained is None or directories is None:
        return None
    known = [np.array([name in trained for name in names], bool)[labels] for names, labels in directories]
    return np.concatenate(known)[test.rows]


def _by_bytes(tests: Sequence[ImageRows], training: Dataset) -> list[Bools]:
    wanted: dict[bytes, list[int]] = {}
    num_images = sum(map(len, tests))
    with phase("hash test images", rows=num_images) as current:
        found = (_digests(test.dataset.shard_paths(), test.dataset.index.select(test.rows)) for test in tests)
        for place, digest in enumerate(itertools.chain.from_iterable(found)):
            if digest is not None:
                wanted.setdefault(digest, []).append(place)
        current.advance(num_images)
    leaked = np.zeros(num_images, bool)
    rows = ShardRows(training.index.shard, len(training.shards))
    paths = training.shard_paths()

    def of_shard(number: int) -> list[int]:
        digests = _digests(paths, training.index.select(rows[number]))
        return [place for digest in digests if digest in wanted for place in wanted[digest]]

    with (
        phase("hash training images", parts=len(training.shards), rows=training.num_images) as current,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for met in pool.map(of_shard, range(len(training.shards))):
            leaked[met] = True
            current.advance()
    return np.split(leaked, np.cumsum([len(test) for test in tests])[:-1])


def _digests(shards: list[str], samples: SampleIndex) -> Iterator[bytes | None]:
    """Yield the digest of each image file, None if it is corrupt."""
    for start in range(0, len(samples), _CHUNK):
        for sample in read_samples(shards, samples.select(slice(start, start + _CHUNK))):
            yield None if isinstance(sample, Fault) else hashlib.sha256(sample.jpeg).digest()


def nearest_images(test: Floats, embeddings: Embeddings) -> tuple[Floats, tuple[str, ...]]:
    """Return the highest cosine of each test embedding (n, D) to a set of embeddings, and the key of that image."""
    unit = test.astype(np.float32)
    best, keys = np.full(len(unit), -np.inf, np.float32), [""] * len(unit)
    with phase("compare with training images", parts=len(embeddings.files), rows=embeddings.num_rows) as current:
        for file in embeddings.files:
            for start in range(0, file.num_rows, _ROWS):
                found = read_rows(file.path, start, min(start + _ROWS, file.num_rows))
                values = found.embeddings.astype(np.float32)
                values /= row_norms(values)[:, None]
                for first in range(0, len(unit), _CHUNK):
                    cosines = unit[first : first + _CHUNK] @ values.T
                    place = cosines.argmax(1)
                    own = cosines[np.arange(len(place)), place]
                    for row in np.flatnonzero(own > best[first : first + _CHUNK]).tolist():
                        best[first + row], keys[first + row] = own[row], found.keys[int(place[row])].as_py()
            current.advance()
    return best, tuple(keys)
