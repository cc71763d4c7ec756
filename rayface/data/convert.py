"""Convert sources of images to a dataset of tar shards, as a resumable job; the same for every source.

1. List the parts of the sources; give every image a number, a key and a label.
2. Read every image once, in the order of its source, into pieces: files in the final order.
3. Cut the final order into shards of the wanted size, and write each from the pieces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rayface.data.conversion import shard_plan, spill
from rayface.data.conversion.columns import write_lost, write_measures
from rayface.data.conversion.job import FAULTS, changed_in_job, job_of
from rayface.data.conversion.listing import Listed, list_sources, tasks_of
from rayface.data.conversion.mapping import AGAIN, MapParts, map_in_threads, named_parts
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.shard_plan import ShardPlan, plan_shards
from rayface.data.conversion.shards import WriteShard, WrittenShard
from rayface.data.conversion.spill import Spill
from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.keys import key_hashes, read_keys, repeated_key
from rayface.data.manifest import IDENTITIES, INDEX, MANIFEST, UNFINISHED, Manifest, names_digest
from rayface.data.shards.samples import Fault
from rayface.data.shards.scan import INDEX_SCHEMA
from rayface.data.sources.base import DatasetSource, write_beside
from rayface.data.sources.faults import FaultLog
from rayface.data.writer import identities_file
from rayface.files import LOCK, read_json, write_json
from rayface.job_folder import exclusive_job_folder, require_empty
from rayface.storage import (
    LARGEST_REMOTE,
    DataError,
    atomic_stream,
    delete,
    exists,
    is_local,
    join,
    list_names,
    make_folder,
    naming_full_disk,
    normalise,
    path_of,
    refuse_repeated,
    split,
    write_bytes,
)
from rayface.values import counted
from rayface.version import VERSION

__all__ = ["JOB", "ConvertSettings", "convert"]

JOB = "convert.json"  # in the output folder until the job ends


def convert(
    source: DatasetSource | Sequence[DatasetSource],
    out: str | Path,
    settings: ConvertSettings | None = None,
    *,
    map_parts: MapParts = map_in_threads,
    key: str = "convert.out",
) -> Dataset:
    """Convert all images of one or several sources to a dataset in the folder `out`.

    The bytes depend only on the sources and the settings. Run again after an interruption, it resumes with the missing
    parts, units and shards. Every identity has at least one image. Everything that is skipped is among the faults of
    the returned dataset, with the reason as `kind`. During the job, `out` also holds a copy of all images.

    Args:
        map_parts: runs the tasks; `rayface.ray_tasks.map_unordered` runs them on Ray.
        key: config key of `out`, for messages.

    Memory of a task: one piece or block (512 MiB). Of the caller: the identities, and about 50 bytes an image.

    Raises:
        DataError: no image, an output folder that is not empty, or a source that cannot be read; one line.
        ValueError: sources of different measures.
    """
    settings = settings or ConvertSettings()
    sources = [source] if isinstance(source, DatasetSource) else list(source)
    target = normalise(out)
    _check_sources(sources, key.replace("out", "source"))
    _check_shard_size(settings.shard_size, target)
    work, faults, folder = WorkFolder(out=target), FaultLog(_root_of(sources)), f"{key}: {target}"

    with naming_full_disk(folder, AGAIN), _output_folder(target, key), contextlib.ExitStack() as stack:
        for number, each in enumerate(sources):
            stack.enter_context(contextlib.closing(each))
            each.prepare(work.of_source(number))
        job, changed = job_of(sources, settings), functools.partial(changed_in_job, folder=folder)
        stack.enter_context(exclusive_job_folder(target, job, JOB, key=key, changed=changed))
        write_bytes(join(target, UNFINISHED), b"")
        if exists(join(target, MANIFEST)):  # only the clean-up is missing
            faults.load(read_json(path_of(join(target, JOB)))[FAULTS])
        else:
            work.create()
            _convert(sources, work, settings, named_parts(map_parts, folder), faults)
        work.delete()
        delete(join(target, UNFINISHED))
        dataset = dataclasses.replace(open_dataset(target, max_corrupt_fraction=0), faults=tuple(faults.faults()))
        write_beside(sources, dataset)
        delete(join(target, JOB))
        return dataset


def _check_shard_size(size: int, target: str) -> None:
    if not is_local(target) and size > LARGEST_REMOTE:
        raise ValueError(f"shard_size {size}: must be at most {LARGEST_REMOTE} (5 GiB) on an object store")


def _check_sources(sources: Sequence[DatasetSource], key: str) -> None:
    """Refuse one source given twice, and sources of different measures."""
    alike: dict[str, list[str]] = {}  # a folder may be read twice, for two splits of it
    for each in sources:
        alike.setdefault(f"{each.kind} {each.settings}", []).append(each.root)
    for roots in alike.values():
        refuse_repeated(roots, key)
    if len({each.measures for each in sources}) > 1:
        raise ValueError(f"convert.kind: {', '.join(each.kind for each in sources)}: must have the same measures")


@contextlib.contextmanager
def _output_folder(folder: str, key: str) -> Iterator[None]:
    """Create the folder before the work starts; after an error, remove it if it is new and still empty."""
    is_new = is_local(folder) and not os.path.exists(folder)
    make_folder(folder)
    if JOB not in list_names(folder):
        require_empty(folder, key=key)
    try:
        yield
    finally:
        if is_local(folder):
            if JOB not in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, LOCK))
            if is_new:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


@contextlib.contextmanager
def _discarded_after_error(work: WorkFolder) -> Iterator[None]:
    """After an error of the input, delete the files of the job: a resume would not see the mended source."""
    try:
        yield
    except ValueError:
        work.delete()
        for name in (UNFINISHED, JOB):
            delete(join(work.out, name))
        raise


def _convert(
    sources: Sequence[DatasetSource],
    work: WorkFolder,
    settings: ConvertSettings,
    map_parts: MapParts,
    faults: FaultLog,
) -> None:
    """Do the three passes, and publish the dataset; what is skipped is added to `faults`."""
    with _discarded_after_error(work):
        listed = list_sources(sources, work, settings, map_parts)
    num_images = _read(
        Spill(sources=sources, work=work, settings=settings, piece_bytes=spill.PIECE_BYTES), listed, map_parts
    )
    faults.update(listed.faults)
    for unit in listed.units:
        faults.load(note_of(read_table(work.spilled(unit.number)))["faults"])
    with _discarded_after_error(work):
        if not num_images:
            raise DataError(f"{_root_of(sources)}: none of its images can be used; the first: {faults.first()}")
        plan = plan_shards(listed, work, settings, block_bytes=shard_plan.BLOCK_BYTES)
    for fault in _left_out(sources, listed, plan, work):
        faults.add(fault)
    rows = int(plan.counts.sum())
    write = WriteShard(plan=plan, work=work, measures=sources[0].measures)
    written = list(map_parts(write, range(len(plan)), "write shards", rows=rows))
    # Before the manifest: a job that is killed after it finds the faults nowhere else.
    job = path_of(join(work.out, JOB))
    write_json(job, {**read_json(job), FAULTS: faults.state()})
    _publish(sources, listed, plan, sorted(written, key=lambda shard: shard.number), work, settings)


def _read(spilled: Spill, listed: Listed, map_parts: MapParts) -> int:
    """Read all units; return the number of readable images.

    Raises:
        DataError: too many images are unreadable.
    """
    limit = spilled.settings.max_corrupt_fraction
    lost, readable, unread = listed.faults.num_lost, 0, listed.num_images
    first = listed.faults.first() if lost else None
    tasks = tasks_of(spilled.sources, listed.units)
    for task in map_parts(spilled, tasks, "read images", rows=listed.num_images):
        lost, readable, unread = lost + task.num_lost, readable + task.num_images, unread - task.num_listed
        first = first or (task.first if task.num_lost else None)
        total = lost + readable + unread  # with files that turn out to be no images when they are read
        if lost > limit * total:
            raise DataError(
                f"convert.max_corrupt_fraction: {limit:g}: {lost} of {'at most ' if unread else ''}{total} images "
                f"cannot be read (the first: {first}): raise it to resume, or repair the source and convert it into a "
                "new folder"
            )
    return readable


def _root_of(sources: Sequence[DatasetSource]) -> str:
    """Return the path of the source, or a list of several, for faults that are of no single one."""
    return sources[0].root if len(sources) == 1 else f"[{','.join(source.root for source in sources)}]"


def _left_out(sources: Sequence[DatasetSource], listed: Listed, plan: ShardPlan, work: WorkFolder) -> Iterator[Fault]:
    """Yield a fault for each identity that has images in the listing and is left out."""
    counts = np.zeros(listed.num_labels, np.int64)
    for unit in listed.units:
        counts += np.bincount(read_table(work.unit(unit.number))["label"].to_numpy(), minlength=len(counts))
    for label in np.flatnonzero((plan.new_labels < 0) & (counts > 0)).tolist():
        name = str(label) if listed.identities is None else listed.identities[label]
        found = int(plan.readable[label])
        reason = f"only {counted(found, 'readable image')}" if found else "no image of this identity can be used"
        yield Fault(shard=_root_of(sources), member=name, reason=reason, kind="identity")


def _publish(
    sources: Sequence[DatasetSource],
    listed: Listed,
    plan: ShardPlan,
    written: Sequence[WrittenShard],
    work: WorkFolder,
    settings: ConvertSettings,
) -> None:
    """Write index, identities and, last, dataset.json.

    Raises:
        DataError: an image was lost or doubled on the way, or two have one key.
    """
    if sum(shard.digest for shard in written) % 2**64 != plan.digest:
        raise DataError(f"{work.out}: the keys in the shards differ from those that were read: delete it and run again")
    index = join(work.out, INDEX)
    with atomic_stream(index) as stream, pq.ParquetWriter(stream, INDEX_SCHEMA) as writer:
        for shard in written:
            table = read_table(work.shard(shard.number)).select(INDEX_SCHEMA.names)
            writer.write_table(table.replace_schema_metadata(None))
    if (key := repeated_key(key_hashes(read_keys(index)), read_keys(index))) is not None:
        raise DataError(f"{work.out}: key {key!r} occurs twice; keys must be unique in a dataset")
    write_lost(work, len(listed.units))
    write_measures(work, len(written), sources[0].measures)
    kept = plan.new_labels >= 0
    identities = listed.identities
    if identities is None and not kept.all() and (len(sources) == 1 or settings.join == "labels"):
        identities = list(map(str, range(listed.num_labels)))  # as `list_sources`, for labels that become others
    names = None if identities is None else [identities[label] for label in np.flatnonzero(kept).tolist()]
    if names is not None:
        write_bytes(join(work.out, IDENTITIES), identities_file(names, plan.readable[kept]))
    sides = {source.settings.image_size for source in sources}
    side = sides.pop() if len(sides) == 1 else None
    manifest = Manifest(
        name=settings.name or split(work.out)[1],
        num_classes=int(kept.sum()),
        num_images=int(plan.counts.sum()),
        image_size=(side, side) if side else listed.image_size,
        layout=settings.layout,
        source=", ".join(source.title for source in sources),
        created_by=f"rayface {VERSION}",
        identities=None if names is None else names_digest(names),
        shards=[shard.entry for shard in written],
    )
    write_bytes(join(work.out, MANIFEST), manifest.to_json())
