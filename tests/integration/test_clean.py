"""The cleaning job on a real Ray equals `clean` in memory, and resumes."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.config import CleanConfig
from rayface.curate.clean import pair_search
from rayface.curate.clean import tasks as clean_tasks
from rayface.curate.clean.clean import clean
from rayface.curate.clean.job import Cleaned, clean_images
from rayface.curate.partitions import Partitions, partition_by_identity, read_partition
from rayface.curate.work_files import WorkPath
from rayface.data.dataset import open_dataset
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part

pytestmark = pytest.mark.usefixtures("local_ray")
SIZE, BLOCK = 16, 400 * 16 * 4
LOOK = CleanConfig(
    outliers=0.3, duplicates=0.9, conflicts=0.9, above=0.8, drop=("outliers", "conflicts", "test"), merge=True
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """3,000 faces of 600 identities in no order, with much to be found among them, and a test set."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(600) * 3, 5)
    centers = random.standard_normal((600, SIZE))
    centers[500:540] = centers[:40] + 0.1 * random.standard_normal((40, SIZE))
    values = np.repeat(centers, 5, axis=0) + 0.5 * random.standard_normal((3000, SIZE))
    values[np.arange(0, 1500, 50)] = values[np.arange(1501, 3000, 50)[:30]]
    order = random.permutation(3000)
    root = tmp_path_factory.mktemp("clean")
    for name, rows, own in (
        ("all", values[order], labels[order]),
        ("test", centers[100:110] + 0.1 * random.standard_normal((10, SIZE)), np.arange(10)),
    ):
        (root / name).mkdir()
        for k in range(0, len(rows), 1100):
            part = slice(k, k + 1100)
            keys = [f"{name}{row:05d}" for row in range(len(rows))[part]]
            batch = (keys, own[part], rows[part].astype(np.float32))
            write_part(str(root / name / f"{k}.parquet"), [batch], size=SIZE, dtype="fp32", note={})
    return root / "all", root / "test"


def run(drawn: tuple[Path, Path], folder: Path, look: CleanConfig, **more: Any) -> tuple[Cleaned, Partitions]:
    source = open_embeddings(drawn[0])
    partitions = partition_by_identity(source, WorkPath(root=folder / "runs"), BLOCK)
    exclude = open_embeddings(drawn[1]) if look.above is not None else None
    settings: dict[str, Any] = {"exclude": exclude, "dataset": None, **more}
    return clean_images(
        partitions, source, WorkPath(root=folder / "clean"), look, block_bytes=BLOCK, device="cpu", **settings
    ), partitions


def test_clean_job_in_many_tasks_finds_what_clean_finds_in_memory(
    drawn: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any
) -> None:
    """An interrupted search goes on with the tiles that are there."""
    monkeypatch.setattr(pair_search, "_LEAST_PAIRS", 2**19)
    monkeypatch.setattr(pair_search, "_CHUNK", 512)

    def stop(done: int, total: int) -> None:
        if total > 8 and done == 3:  # tiles of conflicts
            raise KeyboardInterrupt

    recorder.on_advance = stop
    with pytest.raises(KeyboardInterrupt):
        run(drawn, tmp_path, LOOK)
    assert max(total for _, _, total in recorder.advances) > 8
    recorder.on_advance = lambda done, total: None
    found, partitions = run(drawn, tmp_path, LOOK)
    assert len(partitions.partitions) > 5
    parts = [read_partition(piece)[0] for piece in partitions.partitions]
    keys = pa.concat_arrays([part.keys for part in parts])
    values, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("embeddings", "labels"))
    test = read_partition(
        partition_by_identity(open_embeddings(drawn[1]), WorkPath(root=tmp_path / "test"), BLOCK).partitions[0]
    )[0]
    expected = clean(values, labels, keys, LOOK, test_embeddings=test.embeddings, test_labels=test.labels)
    for name in ("outliers", "duplicates", "conflicts", "test"):
        wanted = getattr(expected, name).to_pydict()
        assert len(next(iter(wanted.values()))) > 5
        assert getattr(found.found, name).to_pydict() == wanted
    assert found.found.num_dropped == expected.num_dropped
    dropped = {
        key: why
        for table in found.dropped()
        for key, why in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True)
    }
    assert dropped == {key: why for key, why in zip(keys.to_pylist(), expected.reason.to_pylist(), strict=True) if why}
    stays = pq.read_table(tmp_path / "clean" / "stays").sort_by("key")
    left = expected.reason.is_null().to_numpy(zero_copy_only=False)
    order = np.argsort(np.array(keys.to_pylist())[left])
    assert stays["key"].to_pylist() == np.array(keys.to_pylist())[left][order].tolist()
    assert stays["label"].to_pylist() == expected.labels[left][order].tolist()
    assert (np.array(stays["embedding"].to_pylist(), np.float32) == values[left][order]).all()
    changed = labels != expected.labels
    assert found.merged == dict(zip(labels[changed].tolist(), expected.labels[changed].tolist(), strict=True))
    assert not (tmp_path / "clean" / "search").exists()


def test_clean_job_that_only_lists_copies_no_embeddings(drawn: tuple[Path, Path], tmp_path: Path) -> None:
    found, _ = run(drawn, tmp_path, CleanConfig(duplicates=0.9))
    assert len(found.found.duplicates) > 5
    assert found.stays == open_embeddings(drawn[0])
    assert not next(found.dropped()).num_rows


def test_clean_job_finds_equal_files_of_different_shards(tmp_path: Path) -> None:
    """Damaged samples, and samples without an embedding, are equal to none."""
    random = np.random.default_rng(0)
    images = [simplejpeg.encode_jpeg(random.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(4)]
    shards = {"a": [0, 1, 2], "b": [3, 1, 0]}
    (tmp_path / "set").mkdir()
    for shard, numbers in shards.items():
        with tarfile.open(tmp_path / "set" / f"{shard}.tar", "w") as tar:
            for place, number in enumerate(numbers):
                for suffix, data in (("jpg", images[number]), ("cls", str(place).encode())):
                    info = tarfile.TarInfo(f"{shard}{place}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    dataset = open_dataset(tmp_path / "set")
    all_keys = dataset.keys()
    keys = [key for key in all_keys if not key.endswith("a0")]
    values = random.standard_normal((5, SIZE)).astype(np.float32)
    (tmp_path / "emb").mkdir()
    batch = (keys, np.array([int(key[-1]) for key in keys]), values)
    write_part(str(tmp_path / "emb" / "0.parquet"), [batch], size=SIZE, dtype="fp32", note={})
    partitions = partition_by_identity(open_embeddings(tmp_path / "emb"), WorkPath(root=tmp_path / "runs"), BLOCK)
    faces = clean_tasks.describe(partitions, WorkPath(root=tmp_path / "faces"))
    rows, others, _ = clean_tasks.copies(dataset, faces, WorkPath(root=tmp_path))
    pairs = {
        frozenset(key[-2:] for key in faces.keys_at(np.array(pair)).to_pylist())
        for pair in zip(rows, others, strict=True)
    }
    assert pairs == {frozenset(("a1", "b1"))}
