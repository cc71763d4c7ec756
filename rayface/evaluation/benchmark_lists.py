"""Draw the lists of a benchmark from held-out identities: verification pairs in folds, templates, galleries, probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints

MAX_TEMPLATE_PAIRS = 1_000_000
_MAX_IMAGES = 100  # of an identity, from which its genuine pairs are drawn
_BLOCK = 1024  # images compared with all others at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class PairList:
    """P pairs of images, fold by fold.

    Attributes:
        a, b: positions of the images, (P,).
        is_same: whether they are of one identity, (P,).
        fold: no identity is in two folds, (P,).
        num_hard: number of impostor pairs that are nearest neighbours.
    """

    a: Ints
    b: Ints
    is_same: NDArray[np.bool_]
    fold: Ints
    num_hard: int

    def counts(self) -> dict[str, int]:
        """Return the numbers of pairs, by kind."""
        genuine = int(self.is_same.sum())
        return {"genuine": genuine, "impostor": len(self.is_same) - genuine, "hard_impostor": self.num_hard}


def draw_pairs(
    labels: Ints, *, num_pairs: int, folds: int, hard: float, embeddings: Floats | None, random: np.random.Generator
) -> PairList:
    """Draw half of the pairs from one identity and half from two; none twice.

    A fold with fewer genuine pairs gets as many impostor pairs. Genuine pairs are spread evenly over the identities of
    a fold. Hard impostors are the nearest neighbours of other identities within the fold, at most one pair of any two
    identities.

    Args:
        labels: (n,) identities of the images.
        hard: share of the impostor pairs that are hard; requires `embeddings`.
        embeddings: (n, D) of length 1.

    Raises:
        ValueError: a fold has no genuine or no impostor pair; one line.
    """
    each = max(1, num_pairs // (2 * folds))
    rows, num_hard = [], 0
    groups = _by_identity(labels)
    for fold, members in enumerate(np.array_split(random.permutation(len(groups)), folds)):
        people = [groups[k] for k in members.tolist()]
        images = np.concatenate([np.empty(0, np.int64), *people])
        genuine = _genuine(people, each, random)
        nearest = []
        if embeddings is not None:
            nearest = _nearest(labels[images], embeddings[images], round(hard * len(genuine)))
            nearest = [(int(images[i]), int(images[j])) for i, j in nearest]
        impostor = _impostors(people, len(genuine), nearest, random)
        if not genuine or not impostor:
            raise ValueError(
                f"folds: {folds}: fold {fold} of {len(people)} identities has {len(genuine)} genuine and "
                f"{len(impostor)} impostor pairs: must have both: hold out more identities, or choose fewer folds"
            )
        num_hard += len(nearest)
        rows += [(*pair, True, fold) for pair in genuine] + [(*pair, False, fold) for pair in impostor]
    a, b, is_same, numbers = zip(*rows, strict=True)
    return PairList(a=np.array(a), b=np.array(b), is_same=np.array(is_same), fold=np.array(numbers), num_hard=num_hard)


def _by_identity(labels: Ints) -> list[Ints]:
    """Return the positions of each identity's images, by rising label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _genuine(people: list[Ints], count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Take the first pair of every identity in random order, then the second, and so on."""
    drawn = [_pairs_of(images, count, random) for images in people]
    return [pair for turn in zip_longest(*drawn) for pair in turn if pair is not None][:count]


def _pairs_of(images: Ints, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    some = random.permutation(images)[:_MAX_IMAGES]
    i, j = np.triu_indices(len(some), 1)
    chosen = random.permutation(len(i))[:count]
    return list(zip(some[i[chosen]].tolist(), some[j[chosen]].tolist(), strict=True))


def _impostors(
    people: list[Ints], count: int, first: list[tuple[int, int]], random: np.random.Generator
) -> list[tuple[int, int]]:
    """Return `first`, filled up to `count` with random pairs of two identities."""
    found = {_ordered(*pair): None for pair in first}
    images, sizes = np.concatenate(people), [len(each) for each in people]
    if (len(images) ** 2 - sum(size**2 for size in sizes)) // 2 < 2 * count:
        # Few enough to list them all; otherwise, few draws repeat a pair.
        own = np.repeat(np.arange(len(people)), sizes)
        i, j = np.triu_indices(len(images), 1)
        i, j = i[own[i] != own[j]], j[own[i] != own[j]]
        for k in random.permutation(len(i)).tolist():
            found[_ordered(images[i[k]], images[j[k]])] = None
        return list(found)[:count]
    while len(found) < count:
        a = int(random.integers(len(people)))
        b = int(random.integers(len(people) - 1))
        pair = [random.choice(people[k]) for k in (a, b + (b >= a))]
        found[_ordered(*pair)] = None
    return list(found)


def _ordered(a: int, b: int) -> tuple[int, int]:
    return (int(a), int(b)) if a < b else (int(b), int(a))


def _nearest(labels: Ints, embeddings: Floats, count: int) -> list[tuple[int, int]]:
    """Return the most similar pairs of two identities, one for any two, most similar first; at most `count`."""
    n = len(labels)
    values = embeddings.astype(np.float32)
    nearest = min(n, max(5, -(-4 * count // n)))
    pairs: list[tuple[float, int, int]] = []
    for start in range(0, n, _BLOCK):
        cosines = values[start : start + _BLOCK] @ values.T
        cosines[labels[start : start + _BLOCK, None] == labels] = -np.inf
        best = np.argpartition(-cosines, nearest - 1, axis=1)[:, :nearest]
        for row, others in enumerate(best):
            found = cosines[row, others]
            places = others[np.isfinite(found)].tolist()
            pairs += [(float(cosines[row, place]), *_ordered(start + row, place)) for place in places]
    chosen: dict[tuple[int, int], tuple[int, int]] = {}
    for _, a, b in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        chosen.setdefault(_ordered(labels[a], labels[b]), (a, b))
        if len(chosen) >= count:
            break
    return list(chosen.values())[:count]


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplateLists:
    """Templates of the held-out identities, and their lists for 1:1 and 1:N.

    Attributes:
        images: positions of the images by template.
        identities: identity of each template.
        galleries: templates of the two galleries; no identity is in both.
        probes: templates that are searched in each gallery; those of the other gallery's identities have no mate.
        pairs: (a, b, is_same): every probe with every gallery template; of more than 1,000,000 pairs, as many random
            ones and all genuine ones.
    """

    images: tuple[Ints, ...]
    identities: tuple[int, ...]
    galleries: tuple[tuple[int, ...], tuple[int, ...]]
    probes: tuple[int, ...]
    pairs: tuple[tuple[int, int, bool], ...]

    def counts(self) -> dict[str, int]:
        """Return the sizes of the lists, by name."""
        return {
            "count": len(self.images),
            "gallery_1": len(self.galleries[0]),
            "gallery_2": len(self.galleries[1]),
            "probes": len(self.probes),
            "pairs": len(self.pairs),
        }


def draw_templates(labels: Ints, *, size: int, random: np.random.Generator) -> TemplateLists:
    """Divide the images of every identity into a gallery template and probe templates of at most `size` images.

    The gallery template gets half of an identity's images, rounded up, or `size`. An identity with one image has no
    probe.
    """
    images: list[Ints] = []
    identities: list[int] = []
    galleries: tuple[list[int], list[int]] = ([], [])
    probes: list[int] = []
    groups = _by_identity(labels)
    for place, k in enumerate(random.permutation(len(groups)).tolist()):
        for number, part in enumerate(_parts(random.permutation(groups[k]), size)):
            (probes if number else galleries[place % 2]).append(len(images))
            images.append(part)
            identities.append(int(labels[part[0]]))
    return TemplateLists(
        images=tuple(images),
        identities=tuple(identities),
        galleries=(tuple(galleries[0]), tuple(galleries[1])),
        probes=tuple(probes),
        pairs=tuple(_template_pairs([*galleries[0], *galleries[1]], probes, identities, random)),
    )


def _parts(images: Ints, size: int) -> Iterator[Ints]:
    first = min(size, -(-len(images) // 2))
    yield images[:first]
    for start in range(first, len(images), size):
        yield images[start : start + size]


def _template_pairs(
    gallery: list[int], probes: list[int], identities: list[int], random: np.random.Generator
) -> Iterator[tuple[int, int, bool]]:
    total = len(gallery) * len(probes)
    if total <= MAX_TEMPLATE_PAIRS:
        chosen = np.arange(total)
    else:
        own = {identities[template]: k for k, template in enumerate(gallery)}
        genuine = [own[identities[probe]] * len(probes) + k for k, probe in enumerate(probes)]
        others = random.choice(total, MAX_TEMPLATE_PAIRS, replace=False)
        chosen = np.union1d(genuine, others)
    for place in chosen.tolist():
        a, b = gallery[place // len(probes)], probes[place % len(probes)]
        yield a, b, identities[a] == identities[b]
