"""The prune job: group embeddings by identity, choose faces, write the core set and a dataset of it.

`prune` reads from top to bottom; every stage leaves files that are found again when it is run again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rayface
from rayface.arrays import Ints
from rayface.config import CleanConfig, Config, PruneConfig, require_keys
from rayface.credentials import masked
from rayface.curate.clean.job import Cleaned, clean_faces, write_findings
from rayface.curate.face_nms import MAX_COMPARED
from rayface.curate.partitions import partition_by_identity
from rayface.curate.prune.baselines import LARGEST
from rayface.curate.prune.pruned_dataset import check_copied, check_data, write_pruned
from rayface.curate.prune.report import curation_report
from rayface.curate.prune.result import CORE_SET, FOUND, REPORT, RESULT, read_result
from rayface.curate.prune.sampled_images import identity_counts
from rayface.curate.prune.selection import SCHEMA, Chooser, Rule
from rayface.curate.prune.settings import check_clean, check_settings
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


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What a prune job reads, and `job`, which must be the same to resume in `root` and to find its result again."""

    root: Path
    source: Embeddings
    dataset: Dataset | None
    test: Embeddings | None
    job: dict[str, Any]


def prune(config: Config) -> dict[str, Any]:
    """Select a core set of embedded images.

    Writes core_set.parquet (key, label, kept, score, suppressed_by, reason), prune.json and report.html into
    `prune.out`, and with `prune.data` a dataset: the folder is then trained on like any other. Two runs make the same
    core set; an interrupted one resumes when it is run again.

    Args:
        config: `prune` and `clean`; of others data.max_corrupt_fraction, data.join, train.device, train.wait_for_nodes,
            tracking and cluster.

    Returns:
        what prune.json holds: method, threshold, keep wanted and got, counts, baselines, seconds, config.

    Raises:
        ValueError: bad input, one line.
    """
    start = time.monotonic()
    inputs = _opened(config)
    root = inputs.root
    with exclusive_job_folder(str(root), inputs.job, _JOB, beside=[PROXY]):
        if result := read_result(root):
            shutil.rmtree(root / _WORK, ignore_errors=True)  # where a crash came between the two
            return result
        (root / RESULT).unlink(missing_ok=True)  # what it says is finished is gone
        with tracked_job(root, config.tracking, inputs.job) as tracked:
            result = _pruned(config, inputs)
            result["seconds"] = time.monotonic() - start
            result["embeddings"] = str(config.prune.embeddings)
            result["config"] = inputs.job
            result["created_by"] = f"rayface {rayface.__version__}"
            write_json(root / RESULT, result)
            shutil.rmtree(root / _WORK, ignore_errors=True)
            tracked.journal.metrics({k: v for k, v in result.items() if isinstance(v, int | float)}, step=0)
            for name in (RESULT, REPORT):
                tracked.journal.artifact(root / name)
    return {**result, "tracking": tracked.uri, "tracking_delivered": tracked.delivered}


def _opened(config: Config) -> _Inputs:
    """Open what is read, and refuse what contradicts itself before anything is written."""
    settings, clean, data = config.prune, config.clean, config.data
    require_keys(config, "prune.embeddings", "prune.out")
    root = on_disk(str(settings.out), "prune.out").absolute()
    check_settings(config)
    source = open_embeddings(str(settings.embeddings))
    dataset = None
    if settings.data:
        dataset = open_dataset(settings.data, max_corrupt_fraction=data.max_corrupt_fraction, join=data.join)
    test = open_embeddings(clean.exclude) if clean.exclude is not None else None
    check_clean(clean, source, test, dataset)
    if dataset is not None:
        check_data(source, dataset)
        if settings.write_shards:
            check_copied(dataset)
    return _Inputs(root=root, source=source, dataset=dataset, test=test, job=_job(config, source, test, dataset))


def _pruned(config: Config, inputs: _Inputs) -> dict[str, Any]:
    """Write the core set, its dataset and its report."""
    cluster, root, dataset = config.cluster, inputs.root, inputs.dataset
    with ray_session(cluster.address, debug=cluster.debug), quiet_data(cluster.debug):
        if is_cluster(cluster.address):
            require({"CPU": 1.0}, 1, wait=config.train.wait_for_nodes, setting="tasks")
        result, cleaned = _selected(config, inputs)
        if dataset is not None:
            merged = cleaned.merged if cleaned else {}
            result["dataset"] = write_pruned(
                root, dataset, root / CORE_SET, merged=merged, write_shards=config.prune.write_shards
            )
    with phase("write report"):
        curation_report(
            root,
            root / CORE_SET,
            inputs.source,
            dataset=dataset,
            found=cleaned.found if cleaned else None,
            labelled=cleaned.faces if cleaned else None,
            table=_table(result),
            baselines=_compared(result),
            seed=config.prune.seed,
        )
    return result


def _selected(config: Config, inputs: _Inputs) -> tuple[dict[str, Any], Cleaned | None]:
    """Write the core set; return what was selected, what other methods would have been, and what was cleaned."""
    settings, clean, source, root = config.prune, config.clean, inputs.source, inputs.root
    laps = _Laps()
    partitions = partition_by_identity(source, root / _WORK / "runs", settings.block_size)
    laps.end("group")
    cleaned = None
    if clean != CleanConfig():
        cleaned = clean_faces(
            partitions,
            source,
            root / _WORK / "clean",
            clean,
            exclude=inputs.test,
            dataset=inputs.dataset if clean.bytes else None,
            block_bytes=settings.block_size,
            device=config.train.device,
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


def _job(config: Config, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> dict[str, Any]:
    """What must be the same to resume in a folder, and to find its result again."""
    settings, clean = asdict(config.prune), asdict(config.clean)
    names = ("method", "threshold", "keep", "min_images", "global_weight", "seed", "baselines", "head")
    looked_for = ("outliers", "duplicates", "conflicts", "bytes")
    job = {
        **{name: settings[name] for name in names},
        "clean": {
            **{name: clean[name] for name in looked_for},
            "test": clean["above"],
            "drop": config.clean.dropped,
            "merge": clean["merge"],
        },
        "block_size": settings["block_size"],
        "embeddings": _digest(source),
        "exclude": _digest(test),
        "dataset_digest": dataset.digest if dataset else None,
        "write_shards": settings["write_shards"],
    }
    return json.loads(json.dumps(job))


def _rule(settings: PruneConfig, chooser: Chooser) -> Rule:
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


def _baselines(settings: PruneConfig, chooser: Chooser, keep: float) -> dict[str, Rule]:
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


def _head(settings: PruneConfig, method: str) -> dict[str, Any]:
    if method != "diffprob" or settings.head is None:
        return {}
    return {"head": settings.head, "scale": RunDirectory(Path(settings.head)).read_config().head.scale}


def _write_core_set(path: Path, tables: Iterator[pa.Table]) -> None:
    with atomic_stream(str(path)) as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
