"""The prune job: group embeddings by identity, choose faces, write the core set and a dataset of it.

`build` reads from top to bottom; every stage leaves files that are found again when it is run again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rayface
from rayface.arrays import Ints
from rayface.config import Config
from rayface.credentials import masked
from rayface.curate.clean.clean import CleanOptions
from rayface.curate.clean.job import Cleaned, clean_faces, write_findings
from rayface.curate.face_nms import MAX_COMPARED
from rayface.curate.partitions import partition_by_identity
from rayface.curate.prune.baselines import LARGEST
from rayface.curate.prune.pruned_dataset import check_copied, check_data, write_pruned
from rayface.curate.prune.report import curation_report
from rayface.curate.prune.result import CORE_SET, FOUND, REPORT, RESULT, read_result
from rayface.curate.prune.sampled_images import identity_counts
from rayface.curate.prune.selection import SCHEMA, Chooser, Rule
from rayface.curate.prune.settings import PruneSettings, check_clean, check_settings
from rayface.data.dataset import Dataset, open_dataset
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.files import write_json
from rayface.job_folder import exclusive_job_folder
from rayface.progress import phase
from rayface.ray_tasks import quiet_data
from rayface.session import is_cluster, ray_session, require
from rayface.storage import atomic_stream, on_disk
from rayface.tracking.job import tracked_job
from rayface.training.run_directory import RunDirectory

PROXY = "proxy"  # folder of what was made on the way to the embeddings
_JOB = ".prune_job.json"
_WORK = ".work"


def build(
    settings: PruneSettings,
    embeddings: str | Path,
    out: str | Path,
    *,
    data: Sequence[str] | None = None,
    exclude: str | Path | None = None,
    write_shards: bool = False,
    config: Config = Config(),  # noqa: B008  # frozen
    address: str | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Choose a core set of embedded faces.

    Writes core_set.parquet (key, label, kept, score, suppressed_by, reason), prune.json and report.html, and with
    `data` a dataset: `out` is then trained on like any other. Two runs make the same core set; an interrupted one goes
    on when run again.

    Args:
        embeddings: folder of parquet files, as `rayface embed` writes them.
        out: folder on a disk that all nodes share, new or of the same job.
        data: the dataset that was embedded, or several as one.
        exclude: embeddings of a test set, whose identities settings.clean.test looks for.
        write_shards: copy the kept samples into shards of their own; else the dataset refers to those of `data`.

    Returns:
        what prune.json holds: method, threshold, keep wanted and got, counts, baselines, seconds, config.

    Raises:
        ValueError: bad input, one line.
    """
    start = time.monotonic()
    root = on_disk(out, "--out").absolute()
    check_settings(settings)
    source = open_embeddings(embeddings)
    limit, join = config.data.max_corrupt_fraction, config.data.join
    dataset = open_dataset(data, max_corrupt_fraction=limit, join=join) if data else None
    if write_shards and dataset is None:
        raise ValueError("--write-shards: needs --data, the dataset that was embedded")
    test = open_embeddings(exclude) if exclude is not None else None
    check_clean(settings, source, test, dataset)
    if dataset is not None:
        check_data(source, dataset)
        if write_shards:
            check_copied(dataset)
    job = _job(settings, source, test, dataset, write_shards)
    with exclusive_job_folder(str(root), job, _JOB, beside=[PROXY]):
        if result := read_result(root):
            shutil.rmtree(root / _WORK, ignore_errors=True)  # where a crash came between the two
            return result
        (root / RESULT).unlink(missing_ok=True)  # what it says is finished is gone
        with tracked_job(root, config.tracking, job) as tracked:
            with ray_session(address, debug=debug), quiet_data(debug):
                if is_cluster(address):
                    require({"CPU": 1.0}, 1, wait=config.train.wait_for_nodes, setting="tasks")
                result, cleaned = _prune(settings, source, root, test, dataset, config.train.device)
                if dataset is not None:
                    result["dataset"] = write_pruned(
                        root,
                        dataset,
                        root / CORE_SET,
                        merged=cleaned.merged if cleaned else {},
                        write_shards=write_shards,
                    )
            with phase("write report"):
                curation_report(
                    root,
                    root / CORE_SET,
                    source,
                    dataset=dataset,
                    found=cleaned.found if cleaned else None,
                    labelled=cleaned.faces if cleaned else None,
                    table=_table(result),
                    baselines=_compared(result),
                    seed=settings.seed,
                )
            result["seconds"] = time.monotonic() - start
            result["embeddings"] = str(embeddings)
            result["config"] = job
            result["created_by"] = f"rayface {rayface.__version__}"
            write_json(root / RESULT, result)
            shutil.rmtree(root / _WORK, ignore_errors=True)
            tracked.journal.metrics({k: v for k, v in result.items() if isinstance(v, int | float)}, step=0)
            for name in (RESULT, REPORT):
                tracked.journal.artifact(root / name)
    return {**result, "tracking": tracked.uri, "tracking_delivered": tracked.delivered}


def _prune(
    settings: PruneSettings,
    source: Embeddings,
    root: Path,
    test: Embeddings | None,
    dataset: Dataset | None,
    device: str,
) -> tuple[dict[str, Any], Cleaned | None]:
    """Write the core set; return what was chosen, beside what other methods would have, and what was cleaned."""
    laps = _Laps()
    partitions = partition_by_identity(source, root / _WORK / "runs", settings.block_size)
    laps.end("group")
    cleaned = None
    if settings.clean != CleanOptions():
        cleaned = clean_faces(
            partitions,
            source,
            root / _WORK / "clean",
            settings.clean,
            exclude=test,
            dataset=dataset if settings.clean.bytes else None,
            block_bytes=settings.block_size,
            device=device,
        )
        partitions = partition_by_identity(cleaned.stays, root / _WORK / "clean_runs", settings.block_size)
        laps.end("clean")
    chooser = Chooser(partitions, root / _WORK / "decisions")
    rule = _rule(settings, chooser)
    kept = chooser.decide(rule)
    laps.end("choose")
    tables = itertools.chain(chooser.decisions(rule), cleaned.dropped() if cleaned else [])
    with phase("write core set", rows=source.num_rows):
        _write_core_set(root / CORE_SET, tables)
    laps.end("write")
    baselines = _baselines(settings, chooser, kept / partitions.num_rows)
    compared = chooser.compare(rule, baselines)
    laps.end("compare")
    result = {
        "method": rule.method,
        "threshold": rule.threshold,
        "keep_wanted": settings.keep,
        "keep": kept / partitions.num_rows,
        "faces_in": source.num_rows,
        "faces_cleaned": source.num_rows - partitions.num_rows,
        "found": write_findings(cleaned.found, root / FOUND) if cleaned else {},
        "faces_out": kept,
        "identities": len(partitions.labels),
        "identities_compared_in_part": _compared_in_part(rule, partitions.sizes, root / CORE_SET),
        "mean_cosine_before": compared["all"]["mean_cosine"],
        "mean_cosine_after": compared["chosen"]["mean_cosine"],
        "baselines": {name: compared[name] for name in baselines},
        "stage_seconds": laps.seconds,
    }
    return result, cleaned


def _compared_in_part(rule: Rule, sizes: Ints, core_set: Path) -> int:
    """How many identities are so large that their faces were not all compared with each other."""
    if rule.method == "herding":
        return int(np.count_nonzero(sizes > LARGEST))
    if rule.method != "face_nms" or sizes.max() <= MAX_COMPARED:
        return 0
    return int(np.count_nonzero(identity_counts(core_set)[2] > MAX_COMPARED))


class _Laps:
    """Seconds of one stage after another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now


def _table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What the report says first."""
    rows = [("method", result["method"])]
    if result["threshold"] is not None:
        rows.append(("threshold", f"{result['threshold']:.4f}"))
    if result["identities_compared_in_part"]:
        rows.append(("identities too large to be compared as a whole", f"{result['identities_compared_in_part']:,}"))
    cosines = f"{result['mean_cosine_before']:.3f}, of the faces kept {result['mean_cosine_after']:.3f}"
    return [*rows, ("mean cosine within an identity", cosines)]


def _compared(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The core set and, where there are any, the others."""
    own = {"faces": result["faces_out"], "mean_cosine": result["mean_cosine_after"], "shared": 1.0}
    return {f"{result['method']} (here)": own, **result["baselines"]} if result["baselines"] else {}


def _digest(source: Embeddings | None) -> str | None:
    """Of the files' names and rows."""
    if source is None:
        return None
    return hashlib.sha256(json.dumps(masked([asdict(file) for file in source.files])).encode()).hexdigest()


def _job(
    settings: PruneSettings, source: Embeddings, test: Embeddings | None, dataset: Dataset | None, write_shards: bool
) -> dict[str, Any]:
    """What must be the same to go on in a folder, and to find its result again."""
    job = {
        **asdict(settings),
        "embeddings": _digest(source),
        "exclude": _digest(test),
        "dataset_digest": dataset.digest if dataset else None,
        "write_shards": write_shards,
    }
    return json.loads(json.dumps(job))


def _rule(settings: PruneSettings, chooser: Chooser) -> Rule:
    """The rule of the core set; its threshold searched where a share is wanted."""
    rule = Rule(
        method=settings.method,
        threshold=settings.threshold,
        keep=settings.keep,
        min_images=settings.min_images,
        global_weight=settings.global_weight,
        seed=settings.seed,
        **_head(settings, settings.method),
    )
    return _found(rule, chooser)


def _baselines(settings: PruneSettings, chooser: Chooser, keep: float) -> dict[str, Rule]:
    """Random always, others where they are asked for."""
    names = dict.fromkeys(["random", *settings.baselines])
    rules = {
        name: Rule(method=name, keep=keep, min_images=settings.min_images, seed=settings.seed, **_head(settings, name))
        for name in names
        if name != settings.method
    }
    return {name: _found(rule, chooser) for name, rule in rules.items()}


def _found(rule: Rule, chooser: Chooser) -> Rule:
    """The rule with its threshold, searched where it has one and a share is wanted."""
    if rule.keep is None or rule.method in ("random", "herding"):
        return rule
    return chooser.search(rule.keep, replace(rule, keep=None))


def _head(settings: PruneSettings, method: str) -> dict[str, Any]:
    if method != "diffprob" or settings.head is None:
        return {}
    return {"head": settings.head, "scale": RunDirectory(Path(settings.head)).read_config().head.scale}


def _write_core_set(path: Path, tables: Iterator[pa.Table]) -> None:
    with atomic_stream(str(path)) as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
