"""What cleaning does on the cluster, in the test's own process: descriptions, searched tiles, equal files."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.curate.clean import tasks
from rayface.curate.clean.stacked_rows import stack, write_rows
from rayface.curate.clean.tasks import ImageFiles, SearchBounds, copies, describe, search
from rayface.curate.cosines import identity_centers
from rayface.curate.partitions import partition_by_identity
from rayface.curate.work_files import WorkPath
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from tests.keyed_dataset import KEYS, grey, keyed_dataset

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def described(tmp_path: Path, drawn: Any, put_embeddings: Any) -> tuple[ImageFiles, np.ndarray, np.ndarray]:
    """Twelve identities in several partitions, their embeddings (N, D) in the order of the files, and offsets."""
    embeddings, offsets = drawn([3, 5, 2] * 4, size=8)
    labels = np.repeat(np.arange(12), np.diff(offsets))
    found = partition_by_identity(put_embeddings(labels, embeddings), WorkPath(root=tmp_path / "runs"), 4 * 8 * 10)
    assert len(found.partitions) > 2
    return describe(found, WorkPath(root=tmp_path / "all"), vectors=True), embeddings, offsets


def test_describe_of_several_partitions_has_centers_cosines_and_keys(described: Any) -> None:
    images, embeddings, offsets = described
    centers, cosines = identity_centers(embeddings, offsets)
    np.testing.assert_allclose(images.centers[0:12], centers, atol=1e-6)
    np.testing.assert_allclose(images.cosines, cosines, atol=1e-6)
    assert (images.bounds.tolist(), images.names.tolist()) == (offsets.tolist(), list(range(12)))
    assert (images.vectors[0 : len(embeddings)] == embeddings).all()
    rows = np.array([39, 0, 17, 17, 2])
    assert images.keys_at(rows).to_pylist() == [f"k{row:03d}" for row in rows]
    assert images.keys_at(np.zeros(0, np.int64)).to_pylist() == []


def test_describe_run_again_keeps_the_files_of_the_first_run(described: Any, tmp_path: Path) -> None:
    images, _, _ = described
    before = [path.local().stat().st_mtime_ns for path in images.paths]
    found = partition_by_identity(open_embeddings(tmp_path / "emb"), WorkPath(root=tmp_path / "runs"), 4 * 8 * 10)
    again = describe(found, WorkPath(root=tmp_path / "all"), vectors=True)
    assert [path.local().stat().st_mtime_ns for path in again.paths] == before


def test_search_on_the_cluster_finds_the_pairs_of_a_plain_product(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    write_rows(WorkPath(root=tmp_path / "0.npy"), values)
    rows = stack([WorkPath(root=tmp_path / "0.npy")])
    bounds = SearchBounds(limit=10_000, block_bytes=1, device="cpu")
    left, right, cosines = search("conflicts", rows, None, 0.5, WorkPath(root=tmp_path), bounds)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    wanted = np.argwhere(np.triu(units @ units.T > 0.5, 1))
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [tuple(pair) for pair in wanted.tolist()]
    np.testing.assert_allclose(cosines, (units @ units.T)[left, right], atol=1e-5)


def test_search_of_more_pairs_than_the_limit_is_refused(tmp_path: Path) -> None:
    write_rows(WorkPath(root=tmp_path / "0.npy"), np.ones((30, 4), np.float32))
    bounds = SearchBounds(limit=20, block_bytes=1 << 20, device="cpu")
    with pytest.raises(ValueError, match=r"^conflicts 0.5: more than 20 pairs are above this cosine; raise it"):
        search("conflicts", stack([WorkPath(root=tmp_path / "0.npy")]), None, 0.5, WorkPath(root=tmp_path), bounds)


def test_digests_of_a_dataset_stand_in_the_order_of_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tasks._digests(keyed_dataset(tmp_path, monkeypatch), WorkPath(root=tmp_path / "digests"))
    digests = [hashlib.blake2b(grey(10 * row), digest_size=8).digest() for row in range(12)]
    assert found.tolist() == [int.from_bytes(digest, "little") for digest in digests]


def test_copies_of_equal_files_keep_the_one_nearest_to_its_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[str]]
) -> None:
    dataset = keyed_dataset(tmp_path, monkeypatch)
    monkeypatch.setattr(tasks, "_digests", lambda dataset, folder: np.array([5, 5, 0, 0, *range(6, 14)], np.uint64))
    (tmp_path / "emb").mkdir()
    vectors = np.array([[1, 1], *[[1, 0]] * 11], np.float32)
    write_part(
        str(tmp_path / "emb" / "0.parquet"), [(KEYS, np.zeros(12, np.int64), vectors)], size=2, dtype="fp32", note={}
    )
    found = partition_by_identity(open_embeddings(tmp_path / "emb"), WorkPath(root=tmp_path / "runs"), 1 << 20)
    images = describe(found, WorkPath(root=tmp_path / "all"))
    left, right, _ = copies(dataset, images, WorkPath(root=tmp_path))
    assert (left.tolist(), right.tolist()) == ([0], [1])  # unreadable files, of digest 0, are no copies
    assert messages()[1:] == ["clean.bytes: 2 images of prune.data cannot be read: not compared"]
