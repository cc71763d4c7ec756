"""Cleaning in memory equals a plain double loop, and drops and merges only what it is asked to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from rayface.config import CleanConfig
from rayface.curate import cosines as cosines_module
from rayface.curate.clean import clean as module
from rayface.curate.clean import pair_search
from rayface.curate.clean.clean import clean
from rayface.curate.clean.pair_search import Tile

Drawn = Callable[..., tuple[NDArray[Any], NDArray[np.int64]]]


@pytest.fixture
def faces(drawn: Drawn) -> tuple[NDArray[Any], NDArray[np.int64], pa.Array]:
    """30 identities with odd labels: 3 outliers, 2 identities of one person, an image that two identities share."""
    random = np.random.default_rng(3)
    embeddings, offsets = drawn(random.integers(3, 12, 30), seed=5)
    labels = np.repeat(np.arange(30) * 3 + 1, np.diff(offsets))
    for identity in (2, 7, 11):
        embeddings[offsets[identity]] = random.standard_normal(64)
    twin = offsets[4] - offsets[3]
    embeddings[offsets[20] : offsets[21]] = embeddings[offsets[3] : offsets[4]].mean(
        axis=0
    ) + 0.3 * random.standard_normal((offsets[21] - offsets[20], 64))
    assert twin > 1
    embeddings[offsets[9] + 1] = embeddings[offsets[15] + 1] * 3
    return embeddings, labels, pa.array([f"k{row}" for row in range(len(labels))])


def units(values: NDArray[Any]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def centers_of(embeddings: NDArray[Any], labels: NDArray[np.int64]) -> dict[int, NDArray[np.float64]]:
    return {k: units(units(embeddings[labels == k]).mean(axis=0)[None])[0] for k in np.unique(labels).tolist()}


@pytest.mark.parametrize("block", [7, 4096])
def test_clean_of_drawn_faults_finds_those_of_a_double_loop(
    faces: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outliers, duplicate identities and conflicts, in blocks of any size; nothing is dropped."""
    monkeypatch.setattr(cosines_module, "_BLOCK", block)
    embeddings, labels, keys = faces
    options = CleanConfig(outliers=0.4, duplicates=0.8, conflicts=0.8)
    found = clean(embeddings, labels, keys, options)
    centers, unit = centers_of(embeddings, labels), units(embeddings)

    outliers = [(unit[i] @ centers[label], i) for i, label in enumerate(labels.tolist())]
    expected = sorted((cosine, i) for cosine, i in outliers if cosine < 0.4)
    assert found.outliers["key"].to_pylist() == [f"k{i}" for _, i in expected]
    assert len(expected) >= 3
    np.testing.assert_allclose(found.outliers["cosine"], [cosine for cosine, _ in expected], atol=1e-12)

    near = {(a, b) for a in centers for b in centers if a < b and centers[a] @ centers[b] > 0.8}
    assert {tuple(row.values())[:2] for row in found.duplicates.to_pylist()} == near == {(10, 61)}

    cosines = unit @ unit.T
    pairs = {
        (f"k{i}", f"k{j}")
        for i, j in np.argwhere(np.triu(cosines > 0.8, 1)).tolist()
        if labels[i] != labels[j] and (labels[i], labels[j]) not in near
    }
    assert {(row["key"], row["other_key"]) for row in found.conflicts.to_pylist()} == pairs
    assert len(pairs) == 1
    assert found.reason.null_count == len(labels)
    assert (found.labels == labels).all()


def test_clean_with_drop_and_merge_drops_and_merges(faces: Any) -> None:
    """A conflict drops the image farther from its mean; of duplicate identities the lower label stays."""
    embeddings, labels, keys = faces
    options = CleanConfig(outliers=0.4, duplicates=0.8, conflicts=0.8, drop=("outliers", "conflicts"), merge=True)
    found = clean(embeddings, labels, keys, options)
    conflict = found.conflicts.to_pylist()[0]
    centers, unit = centers_of(embeddings, labels), units(embeddings)
    sides = [(int(conflict[f"{side}key"][1:]), conflict[f"{side}label"]) for side in ("", "other_")]
    loser = min(sides, key=lambda side: unit[side[0]] @ centers[side[1]])[0]
    dropped = {key: why for key, why in zip(keys.to_pylist(), found.reason.to_pylist(), strict=True) if why}
    outliers = dict.fromkeys(found.outliers["key"].to_pylist(), "outlier")
    assert dropped == {f"k{loser}": "conflict"} | outliers
    assert (found.labels == np.where(labels == 61, 10, labels)).all()


def test_clean_of_outliers_alone_keeps_the_image_nearest_to_the_mean() -> None:
    """Also if every image is an outlier; of opposite images, whose mean is zero, the first."""
    embeddings = np.eye(4)[[0, 1, 2, 3, 3]] * [[1], [1], [1], [1], [-1]]
    found = clean(embeddings, [0, 0, 0, 1, 1], pa.array(list("abcde")), CleanConfig(outliers=0.9, drop=("outliers",)))
    assert found.reason.to_pylist() == [None, "outlier", "outlier", None, "outlier"]
    assert len(found.outliers) == 5


def test_clean_of_equal_files_keeps_one_of_them(faces: Any) -> None:
    """The copy nearest to the mean of its identity stays; of equal ones the first."""
    embeddings, labels, keys = faces
    digests = np.array([f"d{row}" for row in range(len(labels))], dtype="S8")
    first, second = np.flatnonzero(labels == 1)[:2]
    embeddings[second] = embeddings[first]
    stray = int(np.flatnonzero(labels == 7)[0])  # the outlier of identity 2
    digests[[second, stray]] = digests[first]
    found = clean(embeddings, labels, keys, CleanConfig(bytes=True, drop=("bytes",)), digests=digests)
    assert found.bytes.to_pylist() == [
        {"key": f"k{second}", "label": 1, "other_key": f"k{first}", "other_label": 1},
        {"key": f"k{stray}", "label": 7, "other_key": f"k{first}", "other_label": 1},
    ]
    assert {row for row, why in enumerate(found.reason.to_pylist()) if why == "same bytes"} == {second, stray}


def test_clean_of_test_identities_drops_them_whole(faces: Any, drawn: Drawn) -> None:
    """Compared by centers; the test set is in any order."""
    embeddings, labels, keys = faces
    others, _ = drawn([4, 4], seed=99)
    theirs = np.concatenate([others[:4], embeddings[labels == 22], others[4:]])
    names = np.r_[np.full(4, 5), np.full((labels == 22).sum(), 9), np.full(4, 6)]
    mixed = np.random.default_rng(0).permutation(len(names))
    options = CleanConfig(above=0.6, outliers=0.4, drop=("test", "outliers"))
    found = clean(embeddings, labels, keys, options, test_embeddings=theirs[mixed], test_labels=names[mixed])
    assert [(row["label"], row["test_label"]) for row in found.test.to_pylist()] == [(22, 9)]
    assert ((np.array(found.reason.to_pylist()) == "in the test set") == (labels == 22)).all()


def planted(units: NDArray[Any], count: int, cosine: float, seed: int) -> NDArray[Any]:
    """Copies of the first rows, rotated to a given cosine."""
    away = np.random.default_rng(seed).standard_normal((count, units.shape[1]))
    away -= (away * units[:count]).sum(axis=1, keepdims=True) * units[:count]
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return cosine * units[:count] + (1 - cosine**2) ** 0.5 * away


def test_clean_with_test_persons_among_30_000_identities_drops_all_of_them() -> None:
    """And merges all planted duplicates."""
    random = np.random.default_rng(0)
    centers = units(random.standard_normal((30_000, 32)))
    test = planted(centers, 300, 0.7501, seed=1)
    centers[-300:] = planted(centers, 300, 0.9001, seed=2)
    faces = np.repeat(centers, 2, axis=0).astype(np.float32)
    labels = np.repeat(np.arange(30_000), 2)
    options = CleanConfig(duplicates=0.9, above=0.75, drop=("test",), merge=True)
    found = clean(
        faces,
        labels,
        pa.array([f"{row}" for row in range(60_000)]),
        options,
        test_embeddings=test.astype(np.float32),
        test_labels=np.arange(300),
    )
    gone = np.unique(labels[found.reason.is_valid().to_numpy(zero_copy_only=False)])
    exact = np.flatnonzero((centers @ test.T > 0.75).any(axis=1))
    assert set(range(300)) <= set(gone.tolist()) == set(exact.tolist())
    assert (found.labels.reshape(-1, 2)[-300:, 0] == np.arange(300)).all()


def test_merge_of_a_chain_gives_one_label_and_no_limit_of_a_million_pairs() -> None:
    """A person under 1,450 labels: 1,050,525 pairs."""
    random = np.random.default_rng(0)
    person = random.standard_normal(16)
    faces = np.r_[person + 0.01 * random.standard_normal((1450, 16)), -person[None]]
    keys = pa.array([f"{row}" for row in range(1451)])
    found = clean(faces, np.arange(1451)[::-1], keys, CleanConfig(duplicates=0.9, merge=True))
    assert len(found.duplicates) == 1450 * 1449 // 2
    assert (found.labels == np.r_[np.ones(1450), 0]).all()


def test_clean_counts_the_pairs_of_all_tiles_up_to_the_limit(faces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = clean(*faces, CleanConfig(conflicts=0.5)).conflicts.num_rows
    monkeypatch.setattr(module, "tiles", lambda rows, *rest: [Tile(row, row + 1, row, rows) for row in range(rows)])
    monkeypatch.setattr(module, "most_pairs", lambda num_images: pairs)
    assert clean(*faces, CleanConfig(conflicts=0.5)).conflicts.num_rows == pairs > 2
    monkeypatch.setattr(module, "most_pairs", lambda num_images: pairs - 1)
    with pytest.raises(ValueError, match=rf"^conflicts 0.5: more than {pairs - 1} pairs are above this cosine"):
        clean(*faces, CleanConfig(conflicts=0.5))


def test_clean_of_too_many_pairs_raises_one_line(faces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search stops before the pairs fill the memory."""
    monkeypatch.setattr(pair_search, "_LEAST_LIMIT", 10)
    with pytest.raises(ValueError, match=r"^conflicts -0.9: more than \d+ pairs are above this cosine; raise it"):
        clean(*faces, CleanConfig(conflicts=-0.9))
    with pytest.raises(ValueError, match=r"^duplicates -0.9: more than \d+ pairs are above this cosine; raise it"):
        clean(*faces, CleanConfig(duplicates=-0.9))


def test_clean_of_bad_input_raises_one_line(faces: Any) -> None:
    """Each message names the input and states the rule."""
    embeddings, labels, keys = faces
    with pytest.raises(ValueError, match=r"^clean.drop: 'all': must be of test, bytes"):
        clean(embeddings, labels, keys, CleanConfig(drop=("all",)))
    with pytest.raises(ValueError, match=r"^clean.drop: 'outliers': needs clean.outliers, to find them first"):
        clean(embeddings, labels, keys, CleanConfig(conflicts=0.0, drop=("conflicts", "outliers")))
    with pytest.raises(ValueError, match=r"^clean.drop: 'bytes': needs clean.bytes, to find them first"):
        clean(embeddings, labels, keys, CleanConfig(drop=("bytes",)))
    with pytest.raises(ValueError, match=r"^bytes: needs digests"):
        clean(embeddings, labels, keys, CleanConfig(bytes=True))
    with pytest.raises(ValueError, match=r"^clean.merge: needs clean.duplicates"):
        clean(embeddings, labels, keys, CleanConfig(merge=True))
    with pytest.raises(ValueError, match=r"^test: needs a cosine, and embeddings"):
        clean(embeddings, labels, keys, CleanConfig(above=0.6))
    with pytest.raises(ValueError, match=r"must be as many"):
        clean(embeddings, labels[:-1], keys, CleanConfig())
    for wrong in (labels + 0.5, labels.astype(str)):
        with pytest.raises(ValueError, match=r"^labels: are .*: must be integers$"):
            clean(embeddings, wrong, keys, CleanConfig())
    for own in ([keys[0].as_py()] * len(keys), [None, *keys.to_pylist()[1:]]):
        with pytest.raises(ValueError, match=r"^keys: some are missing or occur twice"):
            clean(embeddings, labels, own, CleanConfig())
    test = CleanConfig(above=0.5, exclude="test")
    for rows, ids in ((embeddings[:3], [1, 2]), (embeddings[:2, :1], [1, 2]), (embeddings[0], [1])):
        with pytest.raises(ValueError, match=r"^test: embeddings \(.*must be \(M, \d+\) and \(M,\)$"):
            clean(embeddings, labels, keys, test, test_embeddings=rows, test_labels=ids)
    with pytest.raises(ValueError, match=r"^digests shape \(1,\): must be"):
        clean(embeddings, labels, keys, CleanConfig(bytes=True), digests=["a"])
    with pytest.raises(ValueError, match=r"^digests: hold NoneType, str"):
        clean(embeddings, labels, keys, CleanConfig(bytes=True), digests=[None, *keys.to_pylist()[1:]])
    with pytest.raises(ValueError, match=r"^labels: the rows of an identity"):
        clean(embeddings, labels[::-1] % 2, keys, CleanConfig())
    embeddings[4] = 0
    with pytest.raises(ValueError, match=r"^embeddings row 4: all zeros"):
        clean(embeddings, labels, keys, CleanConfig(outliers=0.4))
