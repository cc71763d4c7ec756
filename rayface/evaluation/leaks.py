"""Leak certificate: which test images and identities are in the training set, by name, by bytes and by embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from rayface.arrays import Bools, Floats, Ints
from rayface.data.dataset import Dataset
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
        by_name: images of identities whose name is in the training set; None if one of the sets has no names.
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


def find_leaks(
    test: ImageRows,
    training: Dataset,
    *,
    test_embeddings: Floats | None = None,
    embeddings: Embeddings | None = None,
    above: float = 0.9,
) -> Leaks:
    """Search a training set for test images; reads every image of both.

    Args:
        test_embeddings: (n, D) of length 1, by the model of `embeddings`.
        embeddings: embeddings of the training set.
        above: cosine above which a training image counts as the same image.
    """
    found = Leaks(
        by_name=_by_name(test, training),
        by_bytes=_by_bytes(test, training),
        by_embedding=None,
        identities=test.dataset.index.label[test.rows].astype(np.int64),
    )
    if embeddings is None or test_embeddings is None:
        return found
    nearest, keys = nearest_images(test_embeddings, embeddings)
    return replace(found, by_embedding=nearest > above, nearest=nearest, nearest_key=keys)


def _by_name(test: ImageRows, training: Dataset) -> Bools | None:
    if test.dataset.identities is None or training.identities is None:
        return None
    trained = np.unique(training.index.label)
    names = {training.identities[label] for label in trained.tolist()}
    known = np.array([name in names for name in test.dataset.identities], bool)
    return known[test.dataset.index.label[test.rows]]


def _by_bytes(test: ImageRows, training: Dataset) -> Bools:
    with phase("hash test images", rows=len(test)) as current:
        found = _digests(test.dataset.shard_paths(), test.dataset.index.select(test.rows))
        wanted: dict[bytes, list[int]] = {}
        for row, digest in enumerate(found):
            if digest is not None:
                wanted.setdefault(digest, []).append(row)
        current.advance(len(test))
    leaked = np.zeros(len(test), bool)
    rows = ShardRows(training.index.shard, len(training.shards))
    paths = training.shard_paths()

    def of_shard(number: int) -> list[int]:
        digests = _digests(paths, training.index.select(rows[number]))
        return [row for digest in digests if digest in wanted for row in wanted[digest]]

    with (
        phase("hash training images", parts=len(training.shards), rows=training.num_images) as current,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for met in pool.map(of_shard, range(len(training.shards))):
            leaked[met] = True
            current.advance()
    return leaked


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
                values /= np.linalg.norm(values, axis=1, keepdims=True)
                for first in range(0, len(unit), _CHUNK):
                    cosines = unit[first : first + _CHUNK] @ values.T
                    place = cosines.argmax(1)
                    own = cosines[np.arange(len(place)), place]
                    for row in np.flatnonzero(own > best[first : first + _CHUNK]).tolist():
                        best[first + row], keys[first + row] = own[row], found.keys[int(place[row])].as_py()
            current.advance()
    return best, tuple(keys)
