"""The prune job: group embeddings by identity, select images, write the core set and a dataset of it.

Every step writes files, from which an interrupted job resumes.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rayface.config import CleanConfig, Config, require_keys
from rayface.curate.clean.job import Cleaned, clean_images, write_findings
from rayface.curate.core_set_file import write_rows
from rayface.curate.job_output import JobOutput, job_output
from rayface.curate.partitions import partition_by_identity
from rayface.curate.prune.comparison import Comparison, compare, fit_baselines
from rayface.curate.prune.keep_ratio import UnreachableKeepError
from rayface.curate.prune.methods import build_method
from rayface.curate.prune.pruned_dataset import check_copied, check_data, write_pruned
from rayface.curate.prune.report import curation_report
from rayface.curate.prune.result import (
    CORE_SET,
    FOUND,
    REPORT,
    RESULT,
    DatasetCounts,
    ImageCounts,
    JobFacts,
    PruneResult,
    Values,
    read_result,
)
from rayface.curate.prune.selection import Method, Selector
from rayface.curate.prune.selection_method import ThresholdMethod
from rayface.curate.prune.settings import check_clean, check_head, check_settings, fingerprint
from rayface.curate.work_files import WorkPath
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.elapsed import Laps
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.files import write_json
from rayface.progress import phase
from rayface.ray_tasks import quiet_data
from rayface.session import is_cluster, ray_session, require
from rayface.storage import normalise
from rayface.tracking.job import tracked_job, was_tracked
from rayface.version import VERSION

PROXY = "proxy"  # folder of the proxy model and its embeddings
_JOB = ".prune_job.json"


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Inputs of a prune job, and `job`, the fingerprint that must be equal to resume in `root` or reuse its result.

    `root` is the path or URI of the output.
    """

    root: str
    source: Embeddings
    dataset: Dataset | None
    test: Embeddings | None
    job: Values


@dataclass(frozen=True, kw_only=True)
class _CoreSet:
    """The selected core set, and the comparison with other methods."""

    method: Method
    counts: ImageCounts
    comparison: Comparison
    cleaned: Cleaned | None
    seconds: dict[str, float]


def prune(config: Config) -> PruneResult:
    """Select a core set of embedded images.

    Writes core_set.parquet (key, label, kept, score, suppressed_by, reason), prune.json and report.html into
    `prune.out`, and with `prune.data` a dataset, on which models are trained like on any other. The core set is
    deterministic; an interrupted job resumes when it is run again.

    Args:
        config: `prune` and `clean`; also data.max_corrupt_fraction, data.join, train.device, train.wait_for_nodes,
            tracking and cluster.

    Raises:
        ValueError: bad input, one line.
    """
    start = time.monotonic()
    inputs = _opened(config)
    with job_output(inputs.root, inputs.job, _JOB, key="prune.out", beside=[PROXY]) as output:
        if (result := read_result(output.path)) is not None:
            output.work.delete()  # left by a crash between the two
            if was_tracked(output.folder):
                return result
        job = tracked_job(output.folder, config.tracking, inputs.job, output=output.root)
        with _abandoned_if_unreachable(output), job as tracked:
            if result is None:
                result = _run(config, inputs, output, start)
            numbers = {k: v for k, v in result.as_dict().items() if isinstance(v, int | float)}
            tracked.journal.metrics(numbers, step=0)
            for name in (RESULT, REPORT):
                tracked.journal.artifact(output.path / name)
    return replace(result, tracked=tracked.result(), folder=output.path)


def _run(config: Config, inputs: _Inputs, output: JobOutput, start: float) -> PruneResult:
    """Select the core set in a Ray session and write the result."""
    (output.path / RESULT).unlink(missing_ok=True)  # files that it lists are missing
    cluster = config.cluster
    session = ray_session(cluster.address, debug=cluster.debug, prometheus=config.tracking.prometheus)
    with session, quiet_data(cluster.debug), _work_deleted_if_unreachable(output):
        core_set, dataset = _selected(config, inputs, output)
        result = _result(config, inputs, output, core_set, dataset)
        _write_report(config, inputs, output, core_set, result)
        result = replace(result, job=replace(result.job, seconds=time.monotonic() - start))
        write_json(output.folder / RESULT, result.as_dict())
        output.finish(RESULT)
    return result


@contextlib.contextmanager
def _abandoned_if_unreachable(output: JobOutput) -> Iterator[None]:
    """Empty the output folder if no threshold keeps the share: this job can never finish, one of another share can."""
    try:
        yield
    except UnreachableKeepError:
        output.abandon(_JOB)
        raise


@contextlib.contextmanager
def _work_deleted_if_unreachable(output: JobOutput) -> Iterator[None]:
    """Delete the work files as `_abandoned_if_unreachable`, inside the Ray session: also copies on other nodes."""
    try:
        yield
    except UnreachableKeepError:
        output.work.delete()
        raise


def _opened(config: Config) -> _Inputs:
    """Open the inputs, and refuse contradictory settings before anything is written."""
    settings, clean = config.prune, config.clean
    require_keys(config, "prune.embeddings", "prune.out")
    root = normalise(str(settings.out))
    check_settings(config)
    source = open_embeddings(str(settings.embeddings), "prune.embeddings")
    if settings.head is not None:
        check_head(settings.head, source)
    dataset = None
    if settings.data:
        dataset = open_configured("prune.data", settings.data, config.data)
    test = open_embeddings(clean.exclude, "clean.exclude") if clean.exclude is not None else None
    check_clean(clean, source, test, dataset)
    if dataset is not None:
        check_data(source, dataset)
        if settings.write_shards:
            check_copied(dataset)
    return _Inputs(root=root, source=source, dataset=dataset, test=test, job=fingerprint(config, source, test, dataset))


def _selected(config: Config, inputs: _Inputs, output: JobOutput) -> tuple[_CoreSet, DatasetCounts | None]:
    """Write the core set and its dataset."""
    if is_cluster(config.cluster.address):
        require({"CPU": 1.0}, 1, wait=config.train.wait_for_nodes, setting="tasks")
    core_set = _core_set(config, inputs, output)
    if inputs.dataset is None:
        return core_set, None
    merged = core_set.cleaned.merged if core_set.cleaned else {}
    shards = config.prune.write_shards
    path = output.folder / CORE_SET
    return core_set, write_pruned(output.root, inputs.dataset, path, merged=merged, write_shards=shards)


def _core_set(config: Config, inputs: _Inputs, output: JobOutput) -> _CoreSet:
    """Clean, select, write the core set and compare it with the baselines."""
    settings, source, work = config.prune, inputs.source, output.work
    laps = Laps()
    partitions = partition_by_identity(source, work / "runs", settings.block_size)
    laps.end("group")
    cleaned = None
    if config.clean != CleanConfig():
        cleaned = clean_images(
            partitions,
            source,
            work / "clean",
            config.clean,
            exclude=inputs.test,
            dataset=inputs.dataset if config.clean.bytes else None,
            block_bytes=settings.block_size,
            device=config.train.device,
        )
        if cleaned.stays is not source:
            partitions = partition_by_identity(cleaned.stays, work / "clean_runs", settings.block_size)
        laps.end("clean")
    selector = Selector(partitions, work / "decisions", seed=settings.seed)
    method = selector.fit(build_method(settings), settings.keep)
    kept = selector.decide(method)
    laps.end("choose")
    path = output.folder / CORE_SET
    with phase("write core set", rows=source.num_rows):
        write_rows(path, itertools.chain(selector.decisions(method), cleaned.dropped() if cleaned else []))
    laps.end("write")
    share = kept / partitions.num_rows
    comparison = compare(selector, method, fit_baselines(settings, selector, share))
    laps.end("compare")
    return _CoreSet(
        method=method,
        counts=ImageCounts(
            faces_in=source.num_rows,
            faces_cleaned=source.num_rows - partitions.num_rows,
            faces_out=kept,
            identities=len(partitions.labels),
            identities_compared_in_part=method.compared_in_part(partitions.sizes, path),
        ),
        comparison=comparison,
        cleaned=cleaned,
        seconds=laps.seconds,
    )


def _result(
    config: Config, inputs: _Inputs, output: JobOutput, core_set: _CoreSet, dataset: DatasetCounts | None
) -> PruneResult:
    method, cleaned, comparison, counts = core_set.method, core_set.cleaned, core_set.comparison, core_set.counts
    return PruneResult(
        method=config.prune.method,
        threshold=method.threshold if isinstance(method, ThresholdMethod) else None,
        keep_wanted=config.prune.keep,
        keep=counts.faces_out / (counts.faces_in - counts.faces_cleaned),
        counts=counts,
        found=write_findings(cleaned.found, WorkPath(root=output.folder / FOUND)) if cleaned else {},
        mean_cosine_before=comparison.everything.mean_cosine,
        mean_cosine_after=comparison.core_set.mean_cosine,
        baselines=comparison.baselines,
        stage_seconds=core_set.seconds,
        dataset=dataset,
        job=JobFacts(
            seconds=0.0,
            embeddings=str(config.prune.embeddings),
            config=inputs.job,
            created_by=f"rayface {VERSION}",
        ),
    )


def _write_report(config: Config, inputs: _Inputs, output: JobOutput, core_set: _CoreSet, result: PruneResult) -> None:
    cleaned = core_set.cleaned
    own = {f"{result.method} (here)": core_set.comparison.core_set}
    with phase("write report"):
        curation_report(
            output.folder,
            output.folder / CORE_SET,
            inputs.source,
            dataset=inputs.dataset,
            found=cleaned.found if cleaned else None,
            labelled=cleaned.images.local() if cleaned else None,
            table=_table(result),
            baselines=own | result.baselines if result.baselines else {},
            seed=config.prune.seed,
            title=output.name,
        )


def _table(result: PruneResult) -> list[tuple[str, str]]:
    """Return the first table of the report."""
    rows = [("method", result.method)]
    if result.threshold is not None:
        rows.append(("threshold", f"{result.threshold:.4f}"))
    if result.counts.identities_compared_in_part:
        rows.append(("identities too large for a full comparison", f"{result.counts.identities_compared_in_part:,}"))
    cosines = f"{result.mean_cosine_before:.3f}, of the images kept {result.mean_cosine_after:.3f}"
    return [*rows, ("mean cosine within an identity", cosines)]
