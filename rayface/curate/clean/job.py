"""Clean embedded images before pruning, as a job on the cluster, and write the embeddings of the kept images.

Every task writes files, from which an interrupted job resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Bools, Ints
from rayface.config import CleanConfig
from rayface.curate.clean.findings import (
    Findings,
    Found,
    far_from_mean,
    findings,
    merged_labels,
    reason_column,
    reasons,
)
from rayface.curate.clean.pair_search import known_pairs, most_pairs, no_pairs
from rayface.curate.clean.tasks import ImageFiles, SearchBounds, copies, describe, search
from rayface.curate.core_set_file import dropped_rows
from rayface.curate.partitions import Partition, Partitions, partition_by_identity, read_partition
from rayface.curate.work_files import WorkPath
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.embedding.part_file import Dtype, write_part
from rayface.ray_tasks import map_unordered
from rayface.storage import make_folder, uri_of
from rayface.storage.parquet import open_parquet, read_table

_ROWS = 65_536
_DONE = "done.json"  # written last
_IMAGES, _STAYS, _SEARCH = "faces.parquet", "stays", "search"
_TABLES = ("outliers", "duplicates", "conflicts", "bytes", "test")


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """Findings, embeddings of the kept images, and merged labels.

    `images` is a parquet file with key, label before merging, and reason to drop, of all images.
    """

    found: Findings
    images: WorkPath
    stays: Embeddings
    merged: dict[int, int]

    def dropped(self) -> Iterator[pa.Table]:
        """Yield rows of a core set for the dropped images."""
        with open_parquet(str(self.images.local())) as file:
            for batch in file.iter_batches(_ROWS, columns=["key", "label", "reason"]):
                gone = batch.filter(pc.is_valid(batch["reason"]))
                yield dropped_rows(gone["key"], gone["label"], gone["reason"])


def clean_images(
    partitions: Partitions,
    source: Embeddings,
    folder: WorkPath,
    options: CleanConfig,
    *,
    exclude: Embeddings | None,
    dataset: Dataset | None,
    block_bytes: int,
    device: str,
) -> Cleaned:
    """Clean all images on the cluster; an interrupted job resumes after its finished tasks.

    Args:
        folder: holds the findings, a copy of the kept embeddings if any image is dropped or merged, and, during the
            search for conflicts, a copy of all embeddings.
        exclude: embeddings of a test set, whose identities are searched.
        dataset: if given, equal files are searched.
        block_bytes: approximate size of the embeddings in a task.
        device: device of the pair search: "auto", "cpu" or "cuda".

    Memory: a few blocks per task; on the driver 30 bytes per image, 8 * D bytes for each sampled one, and the findings.
    """
    if not (folder / _DONE).exists():
        work = folder / _SEARCH
        images = describe(partitions, work / "all", vectors=options.conflicts is not None)
        found, test_names = _find(images, work, options, exclude, dataset, block_bytes, device)
        why = reasons(found, options.dropped, images.cosines, images.bounds)
        if (why >= 0).all():
            raise ValueError("clean.drop: drops every image: change the cosines of clean.*")
        listed = findings(found, why, images.keys_at, images.names, images.bounds, images.cosines, test_names)
        write_findings(listed, folder)
        _write_images(images, why, folder / _IMAGES)
        merged = merged_labels(images.names, found.duplicates) if options.merge else images.names
        changed = np.flatnonzero(merged != images.names)
        if len(changed) or (why >= 0).any():
            _write_stays(partitions, source, why < 0, np.repeat(merged, np.diff(images.bounds)), folder)
        done = {"num_dropped": listed.num_dropped, "merged": [images.names[changed].tolist(), merged[changed].tolist()]}
        with (folder / _DONE).writing() as stream:
            stream.write((json.dumps(done) + "\n").encode())
    (folder / _SEARCH).delete()
    return _cleaned(folder, source)


def _find(
    images: ImageFiles,
    work: WorkPath,
    options: CleanConfig,
    exclude: Embeddings | None,
    dataset: Dataset | None,
    block_bytes: int,
    device: str,
) -> tuple[Found, Ints]:
    """Return the findings, and the labels of the test set's identities."""
    duplicates, conflicts, overlap = no_pairs(), no_pairs(), no_pairs()
    test_names = np.zeros(0, np.int64)
    bounds = SearchBounds(limit=most_pairs(len(images.cosines)), block_bytes=block_bytes, device=device)
    if options.duplicates is not None:
        duplicates = search("duplicates", images.centers, None, options.duplicates, work, bounds)
    if options.conflicts is not None:
        apart = images.bounds, known_pairs(duplicates, len(images.names))
        conflicts = search("conflicts", images.vectors, None, options.conflicts, work, bounds, apart)
    if options.above is not None and exclude is not None:
        test = describe(partition_by_identity(exclude, work / "test_runs", block_bytes), work / "test")
        test_names = test.names
        overlap = search("test", images.centers, test.centers, options.above, work, bounds)
    found = Found(
        outliers=far_from_mean(images.cosines, options.outliers),
        duplicates=duplicates,
        conflicts=conflicts,
        copies=no_pairs() if dataset is None else copies(dataset, images, work),
        overlap=overlap,
    )
    return found, test_names


def _write_images(images: ImageFiles, why: NDArray[np.int8], path: WorkPath) -> None:
    """Write key, label and reason to drop of all images."""
    schema = pa.schema([("key", pa.string()), ("label", pa.int64()), ("reason", pa.string())])
    start = 0
    with path.writing() as stream, pq.ParquetWriter(stream, schema) as writer:
        for table in map(images.table, range(len(images.paths))):
            reason = reason_column(why[start : start + len(table)]).cast(pa.string())
            writer.write_table(pa.table([table["key"], table["label"], reason], schema=schema))
            start += len(table)


def _write_stays(partitions: Partitions, source: Embeddings, stays: Bools, labels: Ints, folder: WorkPath) -> None:
    """Write the kept embeddings with their labels, one file per partition that has any."""
    make_folder(uri_of((folder / _STAYS).path))
    dtype: Dtype = "fp16" if source.dtype == "float16" else "fp32"

    def write(numbered: tuple[int, Partition, Bools, Ints]) -> None:
        number, partition, kept, own = numbered
        path = folder / _STAYS / f"{number:06d}.parquet"
        if not path.exists():
            rows, _ = read_partition(partition)
            places = np.flatnonzero(kept)
            blocks = (
                (rows.keys.take(pa.array(some)).to_pylist(), own[some], rows.embeddings[some])
                for some in (places[k : k + _ROWS] for k in range(0, len(places), _ROWS))
            )
            write_part(uri_of(path.path), blocks, size=source.size, dtype=dtype, note={})

    ends = np.cumsum([partition.num_rows for partition in partitions.partitions]).tolist()
    ranges = [slice(end - partition.num_rows, end) for partition, end in zip(partitions.partitions, ends, strict=True)]
    parts = [
        (number, partition, stays[rows], labels[rows])
        for number, (partition, rows) in enumerate(zip(partitions.partitions, ranges, strict=True))
        if stays[rows].any()
    ]
    for _ in map_unordered(write, parts, "write kept embeddings", rows=int(np.count_nonzero(stays))):
        pass


def _cleaned(folder: WorkPath, source: Embeddings) -> Cleaned:
    """Read the result of a finished job."""
    done = json.loads((folder / _DONE).local().read_text())
    tables = {name: read_table((folder / f"{name}.parquet").local()) for name in _TABLES}
    return Cleaned(
        found=Findings(**tables, num_dropped=done["num_dropped"]),
        images=folder / _IMAGES,
        stays=open_embeddings(uri_of((folder / _STAYS).path)) if (folder / _STAYS).exists() else source,
        merged=dict(zip(*done["merged"], strict=True)),
    )


def write_findings(found: Findings, folder: WorkPath) -> dict[str, int]:
    """Write the findings as parquet tables; return the number of rows of each."""
    for name in _TABLES:
        with (folder / f"{name}.parquet").writing() as stream:
            pq.write_table(getattr(found, name), stream)
    return {name: len(getattr(found, name)) for name in _TABLES}
