"""Cleaning as a job, its tasks in the test's own process: as in memory, and resumed with what was found."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.arrays import group_offsets
from rayface.config import CleanConfig
from rayface.curate.clean import job as module
from rayface.curate.clean.clean import clean
from rayface.curate.clean.job import Cleaned, clean_images, write_findings
from rayface.curate.partitions import partition_by_identity
from rayface.curate.work_files import WorkPath
from rayface.embedding.rows import read_rows

pytestmark = pytest.mark.usefixtures("in_process")
OPTIONS = CleanConfig(outliers=0.75, duplicates=0.98, conflicts=0.9, drop=("outliers", "conflicts"), merge=True)


@pytest.fixture
def faces(drawn: Any) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of 20 identities, of which 3 and 8 are one person, and an image that 5 and 6 share."""
    embeddings, offsets = drawn(np.full(20, 6), size=16)
    embeddings[offsets[8] : offsets[9]] = embeddings[offsets[3] : offsets[4]] * 1.5
    embeddings[offsets[5]] = 2 * embeddings[offsets[6] + 1]
    return embeddings, np.repeat(np.arange(20) * 2, 6)


@pytest.fixture
def cleaned(faces: Any, put_embeddings: Any, tmp_path: Path) -> Any:
    """A function of options -> what the job found, in partitions of three identities."""
    embeddings, labels = faces
    source = put_embeddings(labels, embeddings)
    partitions = partition_by_identity(source, WorkPath(root=tmp_path / "runs"), 4 * 16 * 18)
    assert len(partitions.partitions) > 4
    given = {"exclude": None, "dataset": None, "block_bytes": 4 * 16 * 18, "device": "cpu"}

    def cleaned(options: CleanConfig, **changes: Any) -> Cleaned:
        return clean_images(partitions, source, WorkPath(root=tmp_path / "clean"), options, **{**given, **changes})

    return cleaned


def test_clean_job_in_partitions_finds_and_drops_what_clean_does_in_memory(faces: Any, cleaned: Any) -> None:
    embeddings, labels = faces
    keys = pa.array([f"k{row:03d}" for row in range(len(labels))])
    wanted, found = clean(embeddings, labels, keys, OPTIONS), cleaned(OPTIONS)
    for name in ("outliers", "duplicates", "conflicts", "bytes", "test"):
        mine, theirs = (getattr(each, name).to_pydict() for each in (found.found, wanted))
        assert mine.keys() == theirs.keys()
        for column in mine:
            if column == "cosine":
                np.testing.assert_allclose(mine[column], theirs[column], atol=1e-6)
            else:
                assert mine[column] == theirs[column]
    assert len(found.found.duplicates) == 1
    assert len(found.found.conflicts) == 1
    assert found.found.num_dropped == wanted.num_dropped
    images = pq.read_table(found.images.local())
    assert images["reason"].to_pylist() == wanted.reason.to_pylist()
    assert images["label"].to_pylist() == labels.tolist()
    assert found.merged == {16: 6}
    gone = [key for table in found.dropped() for key in table["key"].to_pylist()]
    assert gone == [key for key, why in zip(keys.to_pylist(), wanted.reason.to_pylist(), strict=True) if why]


def test_clean_job_writes_embeddings_that_stay_with_merged_labels(faces: Any, cleaned: Any) -> None:
    embeddings, labels = faces
    found = cleaned(OPTIONS)
    rows = [read_rows(file.path, 0, file.num_rows) for file in found.stays.files]
    keys = [key for each in rows for key in each.keys.to_pylist()]
    places = [int(key[1:]) for key in keys]
    assert len(keys) == found.stays.num_rows == len(labels) - sum(found.found.num_dropped.values())
    own = np.concatenate([each.labels for each in rows])
    assert own.tolist() == np.where(labels[places] == 16, 6, labels[places]).tolist()
    assert (np.concatenate([each.embeddings for each in rows]) == embeddings[places]).all()
    assert len(group_offsets(np.sort(own))) == 20  # nineteen identities are left


def test_clean_job_run_again_reads_what_was_found_without_a_task(cleaned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cleaned(OPTIONS)
    monkeypatch.setattr(module, "describe", None)  # would fail
    second = cleaned(OPTIONS)
    assert second.found.num_dropped == first.found.num_dropped
    assert second.found.conflicts.equals(first.found.conflicts)
    assert (second.merged, second.stays.num_rows) == (first.merged, first.stays.num_rows)


def test_clean_job_that_drops_nothing_leaves_the_embeddings_as_they_are(cleaned: Any, tmp_path: Path) -> None:
    found = cleaned(CleanConfig(outliers=0.75))
    assert found.stays.files[0].path == str(tmp_path / "emb" / "0.parquet")
    assert next(found.dropped()).num_rows == 0
    assert len(found.found.outliers) > 0


def test_clean_job_of_test_identities_finds_them_by_their_centers(
    faces: Any, cleaned: Any, put_embeddings: Any
) -> None:
    embeddings, labels = faces
    test = put_embeddings(labels[:12] + 100, 3 * embeddings[:12], "test")
    found = cleaned(CleanConfig(above=0.95, exclude="test", drop=("test",)), exclude=test)
    assert [tuple(row.values())[:2] for row in found.found.test.to_pylist()] == [(0, 100), (2, 102)]
    assert found.found.num_dropped["in the test set"] == 12


def test_clean_job_that_would_drop_every_image_is_refused(
    cleaned: Any, faces: Any, put_embeddings: Any, tmp_path: Path
) -> None:
    embeddings, labels = faces
    everyone = put_embeddings(labels, embeddings, "test")
    with pytest.raises(ValueError, match=r"^clean.drop: drops every image: change the cosines of clean") as caught:
        cleaned(CleanConfig(above=0.95, exclude="test", drop=("test",)), exclude=everyone)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clean" / "done.json").exists()


def test_write_findings_leaves_a_table_of_each_kind_and_counts_them(cleaned: Any, tmp_path: Path) -> None:
    counts = write_findings(cleaned(OPTIONS).found, WorkPath(root=tmp_path / "found"))
    assert {path.stem for path in (tmp_path / "found").iterdir()} == {
        "outliers",
        "duplicates",
        "conflicts",
        "bytes",
        "test",
    }
    assert (counts["duplicates"], counts["conflicts"]) == (1, 1)
