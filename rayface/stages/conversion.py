"""Convert sources of images to a dataset: on Ray, unless the work is smaller than Ray's start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

import ray

from rayface.config import ClusterConfig, Config, ConvertConfig, require_keys
from rayface.data.configured import open_configured
from rayface.data.conversion.columns import LOST
from rayface.data.conversion.mapping import map_in_threads
from rayface.data.convert import JOB as CONVERT_JOB
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.manifest import PAIRS, UNFINISHED
from rayface.data.shards.samples import Fault
from rayface.data.sources import DatasetSource, open_source
from rayface.data.targets import Written, target_of
from rayface.files import read_json, remove_folder, write_json
from rayface.job_folder import exclusive_job_folder, require_empty
from rayface.ray_tasks import map_unordered
from rayface.session import is_cluster, ray_session
from rayface.storage import (
    AnyPath,
    DataError,
    join,
    list_names,
    normalise,
    on_disk,
    path_of,
    read_bytes,
    split,
    uri_of,
    write_bytes,
)

_FEW = 8  # parts of a phase that threads finish while a local Ray starts
_JOB, _FAULTS = "job.json", "faults.json"  # beside the dataset that `write_target` converts first

Part = TypeVar("Part")
Result = TypeVar("Result")


def convert_sources(config: Config) -> Dataset:
    """Convert `convert.source`, one or several, to a dataset in `convert.out`, and open it.

    Run again after an interruption, it resumes to the same bytes. Faults of the dataset are what was left out.

    Args:
        config: `convert`, without convert.to; also data.join and cluster.

    Raises:
        ValueError: bad input, one line.
    """
    given = config.convert
    if given.to is not None:
        raise ValueError(
            f"convert.to: {given.to}: must not be set: rayface.convert writes a dataset; use the command line"
        )
    settings = ConvertSettings(
        layout=given.layout,
        shard_size=given.shard_size,
        seed=given.seed,
        jpeg_quality=given.jpeg_quality,
        min_images=given.min_images,
        limit=given.limit,
        max_corrupt_fraction=given.max_corrupt_fraction,
        join=config.data.join,
    )
    require_keys(config, "convert.kind")
    sources = open_sources(given.source, given.kind, given.options, key="convert.kind")
    with Tasks(config.cluster) as tasks:
        return convert(sources, str(given.out), settings, map_parts=tasks.map)


def write_target(config: Config) -> Written:
    """Write `convert.source` to `convert.out` in the format `convert.to`.

    A source that is no dataset is first converted to one beside the output. Run again after an interruption, it takes
    up what is there. The list of lost images, and pairs that the format has no place for, become OUT.lost.parquet and
    OUT.pairs.csv.

    Raises:
        ValueError: bad input, one line.
    """
    given = config.convert
    target, out = target_of(str(given.to)), normalise(str(given.out))
    if not given.kind:
        _refuse_settings_of_sources(given)
        dataset = open_configured("convert.source", given.source, config.data)
        return _with_faults(target(dataset, out), dataset)
    if given.to == "folder":
        on_disk(out, "convert.out")
    folder, name = split(out)
    work = path_of(join(folder, f".{name}.dataset"))
    _require_new(out, work)
    with exclusive_job_folder(uri_of(work), _job(config), _JOB, key="convert.out"):
        try:
            dataset = _converted(config, work / name, work / _FAULTS)
            written = target(dataset, out)
        except ValueError:
            if not (work / name / CONVERT_JOB).exists():  # else it can be resumed
                remove_folder(work)
            raise
        for table in (LOST, PAIRS):
            if (work / name / table).exists() and (table, given.to) != (PAIRS, "bin"):
                write_bytes(join(folder, f"{name}.{table}"), read_bytes(uri_of(work / name / table)))
        remove_folder(work)
    return _with_faults(written, dataset)


def _refuse_settings_of_sources(given: ConvertConfig) -> None:
    """Refuse settings that a dataset, whose images are written as they are, does not take."""
    for name, value in asdict(replace(ConvertConfig(), source=given.source, to=given.to, out=given.out)).items():
        if (own := getattr(given, name)) != value:
            raise ValueError(
                f"convert.{name}: {own}: has no effect on a dataset: set convert.kind=webdataset (--from webdataset), "
                "which converts it first"
            )


def _with_faults(written: Written, dataset: Dataset) -> Written:
    return replace(written, faults=(*dataset.faults, *written.faults))


def _require_new(out: str, work: AnyPath) -> None:
    """Refuse an output that exists before the conversion: a target would, after it."""
    path = path_of(out)
    if path.is_dir() and UNFINISHED in list_names(out):
        return  # the target starts over, or refuses it
    if path.is_file():
        raise DataError(f"convert.out: {out}: exists: choose another file, existing data is never overwritten")
    if path.is_dir() and list_names(out) and work.exists():
        raise DataError(
            f"convert.out: {out}: is not empty, probably of a run that was cut off: delete it and run again, which "
            f"takes up {work}"
        )
    if path.is_dir():
        require_empty(out, key="convert.out")


def _job(config: Config) -> dict[str, object]:
    """Return what decides the dataset beside the output."""
    fields = asdict(config.convert)
    for name in ("out", "to", "max_corrupt_fraction"):
        del fields[name]
    return {**fields, "source": [normalise(path) for path in config.convert.source], "join": config.data.join}


def _converted(config: Config, folder: AnyPath, faults: AnyPath) -> Dataset:
    """Convert into `folder` and, last, write what was left out to `faults`; a complete dataset is opened."""
    if faults.exists():
        found = tuple(Fault(**each) for each in read_json(faults))
        return replace(open_dataset(uri_of(folder), max_corrupt_fraction=0), faults=found)
    if folder.exists() and not (folder / CONVERT_JOB).exists():
        remove_folder(folder)  # complete, but what it left out is not known
    dataset = convert_sources(replace(config, convert=replace(config.convert, out=uri_of(folder), to=None)))
    write_json(faults, [asdict(fault) for fault in dataset.faults])
    return dataset


def open_sources(
    paths: Sequence[str], kinds: Sequence[str], options: Mapping[str, object], *, key: str
) -> list[DatasetSource]:
    """Return the sources at `paths`, of one format or one each; `key` is the config key of the formats."""
    if len(kinds) not in (1, len(paths)):
        rule = "give one, or one for each source"
        raise ValueError(f"{key}: {len(kinds)} formats for {len(paths)} sources: {rule}")
    each = list(kinds) * len(paths) if len(kinds) == 1 else kinds
    return [open_source(kind, path, options) for kind, path in zip(each, paths, strict=True)]


class Tasks(contextlib.ExitStack):
    """Maps parts on Ray, which is started by the first phase with many parts; before that in threads."""

    def __init__(self, cluster: ClusterConfig) -> None:
        super().__init__()
        self._cluster = cluster
        self._on_ray = ray.is_initialized() or is_cluster(cluster.address)

    def map(
        self, work: Callable[[Part], Result], parts: Sequence[Part], name: str, *, rows: int | None = None
    ) -> Iterator[Result]:
        """Call work(part) for every part, see `map_unordered`."""
        self._on_ray = self._on_ray or len(parts) > _FEW
        if not self._on_ray:
            return map_in_threads(work, parts, name, rows=rows)
        if not ray.is_initialized():
            self.enter_context(ray_session(self._cluster.address, debug=self._cluster.debug))
        return map_unordered(work, parts, name, rows=rows)
