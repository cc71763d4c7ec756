"""OGMC: online clustering by Gaussian mixtures (arXiv 2103.17272), a reconstruction: the paper's code cannot be had.

An identity is one or several connected components, each a spherical Gaussian with its count, mean and variance. A new
vector updates the nearest component, or founds one. Each update renews the connections of that component and of a few
others in turn, so decisions taken on few images are revised as more arrive:

* a component leaves its identity if its affinity to the rest of it is below the threshold by more than the fraction
  `slack`, or below that to another identity;
* two identities become one if their affinity reaches the threshold, which single images reach at the cosine `link`.

The affinity follows from sums alone; with `prior` infinity it is the mean cosine between the images (average linkage).

Candidates come from an approximate index, so the time of an image does not grow with their number; see `ogmc_index`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints, check_embeddings, identities_of
from rayface.curate.affinity import PRIOR_PAIRS, RATIO, base_cosine, scale_of
from rayface.curate.cluster.neighbours import nearest
from rayface.curate.cluster.threshold import best_threshold
from rayface.curate.cosines import unit_blocks
from rayface.curate.ogmc_index import ComponentIndex
from rayface.curate.ogmc_kernel import COMPONENTS, FREE, IDENTITIES, State, Thresholds, add_vectors
from rayface.curate.ogmc_state import OgmcSettings, empty_state, enlarged, in_use, restored_state, with_room
from rayface.storage import DataError, atomic_stream, local_copy

_BLOCK = 256  # arrivals between two updates of the index
_FORMAT = 1
_REACHES = (1.2, 1.5, 1.8)  # radii tried by calibration, see radius_of
_CLOSEST = 0.98


class OnlineGaussianMixture:
    """Cluster vectors as they arrive.

    The result depends on the order of arrival, but not on how it is cut into calls.

    Args:
        radius: distance of a unit vector to the mean of a component within which it joins; else it starts a new one.
        link: cosine from which two single images are one person; for larger identities see `affinity`.
        base: cosine of images of two persons, the median of random pairs.
        slack: fraction by which a component's affinity to its identity may fall below the threshold before it leaves.
        prior: pairs of images that the expected cohesion of an identity counts as; infinity: all are equally cohesive.
        revisits: components whose connections are renewed with every image, beside that of the image.
        min_images: identities of fewer images are noise.

    Memory: 8 * D bytes per component and 8 per image, up to twice as much as arrays double. An entry of the index takes
    4 * D and its links up to 16,384 entries, at most 80 beyond.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        radius: float = 0.85,
        link: float = 0.35,
        base: float = 0.0,
        slack: float = 0.05,
        prior: float = PRIOR_PAIRS,
        revisits: int = 2,
        min_images: int = 2,
    ) -> None:
        self.settings = OgmcSettings(
            radius=radius,
            link=link,
            base=base,
            slack=slack,
            prior=prior,
            revisits=revisits,
            min_images=min_images,
        )
        self._component = np.empty(0, np.int64)  # of each image, in order of arrival
        self._num_images = 0
        self._state: State | None = None
        self._index: ComponentIndex | None = None
        self._indexed = np.empty(0)  # images of each component when it was last indexed
        self._num_indexed = 0  # components in the index: the first ones

    @classmethod
    def calibrated(cls, embeddings: ArrayLike, labels: ArrayLike, *, seed: int = 0, min_images: int = 2) -> Self:
        """Return a mixture without images, with the thresholds of the best pairwise F on labelled embeddings.

        Args:
            embeddings: (n, D) of any norm, of as many identities as possible: more identities need a higher threshold.
            labels: (n,) identities, numbers or strings.
            seed: seed of the two orders in which they arrive.

        Raises:
            ValueError: wrong shapes, labels that are missing, or fewer than two identities.
        """
        values, known = check_embeddings(embeddings), identities_of(labels, "labels")[0]
        if known.shape != values.shape[:1] or len(np.unique(known)) < 2:
            raise ValueError(f"labels shape {known.shape}: must be ({len(values)},), of at least 2 identities")
        vectors = np.concatenate(list(unit_blocks(values))).astype(np.float32)
        base = base_cosine(vectors)
        orders = [np.random.default_rng([seed, number]).permutation(len(vectors)) for number in range(2)]

        make = partial(cls, base=base, min_images=min_images)

        def clusters(link: float, reach: float) -> Ints:
            found = []
            for order in orders:
                own = make(radius=radius_of(link, base, reach), link=link).partial_fit(vectors[order])
                found.append(own.labels_[np.argsort(order)])
            return np.concatenate([np.where(own < 0, own, 2 * own + place) for place, own in enumerate(found)])

        near = nearest(vectors, 1).cosines[:, 0]
        twice = np.unique(known, return_inverse=True)[1]
        twice = np.concatenate([twice, twice + len(known)])
        best = (-1.0, 0.0, 0.0)
        for reach in _REACHES:
            link, score = best_threshold(vectors, twice, near, partial(clusters, reach=reach))
            best = max(best, (score, reach, link))  # of equal scores that of the smallest components
        _, reach, link = best
        return make(radius=radius_of(link, base, reach), link=link)

    @property
    def num_images(self) -> int:
        """Number of images that have arrived."""
        return self._num_images

    @property
    def num_components(self) -> int:
        """Number of components so far, deleted ones included."""
        return int(self._state.counters[COMPONENTS]) if self._state is not None else 0

    def candidates(self, vectors: NDArray[np.float32]) -> Ints:
        """Return the components (n, A) that unit vectors (n, D) are compared with, beside those not indexed yet."""
        return self._index.search(vectors) if self._index is not None else np.empty((len(vectors), 0), np.int64)

    def nearest_components(self, vectors: NDArray[np.float32]) -> Ints:
        """Return the indexed component (n,) whose unit mean is nearest, among all of them."""
        assert self._state is not None
        kept = np.flatnonzero(self._state.counts[: self._num_indexed] > 0)
        best, found = np.full(len(vectors), -np.inf), np.full(len(vectors), -1)
        for some in np.array_split(kept, max(1, len(kept) // 65_536)):
            cosines = vectors @ self._means(some).T
            better = cosines.max(axis=1) > best
            found[better], best = some[cosines.argmax(axis=1)][better], np.maximum(best, cosines.max(axis=1))
        return found

    @property
    def labels_(self) -> Ints:
        """Identity (N,) of each image in order of arrival; -1: noise, or deleted."""
        if self._state is None:
            return np.empty(0, np.int64)
        own = self._component[: self._num_images]
        number = self._state.identity[own]
        images = self._state.identity_counts[number].round()
        known = (self._state.counts[own] > 0) & (images >= self.settings.min_images)
        return np.where(known, number, -1)

    def partial_fit(self, embeddings: ArrayLike) -> Self:
        """Add images in order.

        Args:
            embeddings: (n, D) of any norm.

        Raises:
            ValueError: another shape or dimension; NaN, infinity or a vector of zeros; nothing is added then.
        """
        values = check_embeddings(embeddings)
        vectors = np.concatenate([np.empty((0, values.shape[1])), *unit_blocks(values)]).astype(np.float32)
        if self._state is None:
            self._state = empty_state(values.shape[1])
            self._index = ComponentIndex(values.shape[1])
        elif values.shape[1] != self._state.sums.shape[1]:
            raise ValueError(
                f"embeddings of length {values.shape[1]}: must be {self._state.sums.shape[1]}, as those before: give "
                "embeddings of one model"
            )
        for block in self._blocks(vectors):
            self._add(block)
        return self

    def delete(self, identity: int) -> None:
        """Forget an identity: its images become -1, and new images of it start a new one.

        Raises:
            ValueError: there is no such identity.
        """
        state = self._state
        if state is None or not 0 <= identity < state.counters[IDENTITIES] or state.sizes[identity] == 0:
            raise ValueError(f"identity {identity}: does not exist: must be one of labels_")
        used = int(state.counters[COMPONENTS])
        gone = np.flatnonzero((state.identity[:used] == identity) & (state.counts[:used] > 0))
        state.counts[gone] = 0
        state.sums[gone] = 0
        state.identity_counts[identity], state.sizes[identity] = 0, 0
        state.free[state.counters[FREE]] = identity
        state.counters[FREE] += 1

    def save(self, path: str | Path | BinaryIO) -> None:
        """Write settings and state as one .npz file, without pickle."""
        about = {
            "format": _FORMAT,
            "settings": asdict(self.settings),
            "num_images": self._num_images,
            "num_indexed": self._num_indexed,
        }
        arrays: dict[str, NDArray[Any]] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        if self._state is not None and self._index is not None:
            arrays |= in_use(self._state) | self._index.arrays()
            arrays |= {"component": self._component[: self._num_images], "indexed": self._indexed[: self._num_indexed]}
        with atomic_stream(str(path)) if isinstance(path, str | Path) else nullcontext(path) as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path | BinaryIO) -> Self:
        """Return what `save` wrote; more images may be added.

        Raises:
            DataError: the file is corrupt, or of another format.
        """
        opened = local_copy(path) if isinstance(path, str | Path) else path
        try:
            with np.load(opened, allow_pickle=False) as file:
                return cls._restored({name: file[name] for name in file.files})
        except OSError:
            raise
        except Exception as error:
            raise DataError(f"{path}: is no saved OGMC state ({type(error).__name__}: {error})") from None

    @classmethod
    def _restored(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']}: must be {_FORMAT}")
        own = cls(**about["settings"])
        own._num_images, own._num_indexed = about["num_images"], about["num_indexed"]
        if arrays:
            own._component, own._indexed = arrays["component"], arrays["indexed"]
            own._state = restored_state(arrays)
            own._index = ComponentIndex.restored(own._state.sums.shape[1], arrays)
        return own

    def _blocks(self, vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Yield vectors up to the next update of the index, which comes after every _BLOCK images in total."""
        start = 0
        while start < len(vectors):
            stop = start + _BLOCK - self._num_images % _BLOCK
            yield vectors[start:stop]
            start = stop

    def _add(self, vectors: NDArray[np.float32]) -> None:
        assert self._state is not None
        assert self._index is not None
        self._state = with_room(self._state, len(vectors))
        found = self._index.search(vectors)
        settings = self.settings
        scale = scale_of(settings.link, settings.base, settings.prior)
        limits = Thresholds(settings.radius**2, RATIO * (1 - settings.slack), settings.revisits, scale)
        component = add_vectors(vectors, found, self._num_indexed, self._state, limits)
        end = self._num_images + len(vectors)
        self._component = enlarged(self._component, end)
        self._component[self._num_images : end] = component
        self._num_images = end
        if end % _BLOCK == 0:
            self._update_index()

    def _update_index(self) -> None:
        """Index the last images' components: new ones, and again those with twice the images, as means move."""
        assert self._state is not None
        assert self._index is not None
        used = int(self._state.counters[COMPONENTS])
        self._indexed = enlarged(self._indexed, used)
        last = np.unique(self._component[self._num_images - _BLOCK : self._num_images])
        moved = last[self._state.counts[last] >= np.maximum(1, 2 * self._indexed[last])]
        self._index.add(moved, self._means(moved))
        self._indexed[moved] = self._state.counts[moved]
        kept = np.flatnonzero(self._state.counts[:used] > 0)
        if self._index.is_outgrown and len(kept):
            self._index.remake(kept, self._means(kept))
            self._indexed[kept] = self._state.counts[kept]
        self._num_indexed = used

    def _means(self, components: Ints) -> NDArray[np.float32]:
        """Return the means of components, divided by their norm."""
        assert self._state is not None
        sums = self._state.sums[components]
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def radius_of(link: float, base: float, reach: float = 1.5) -> float:
    """Return a radius for a link threshold: the distance of unit vectors `reach` as far above `base` as `link` is."""
    return float(np.sqrt(2 - 2 * min(base + reach * (link - base), _CLOSEST)))
