"""The cluster job: normalise embeddings, search neighbours, cluster, write labels and a dataset of the clusters.

Every task writes files, from which an interrupted job resumes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.config import ClusteringConfig, Config, require_keys
from rayface.curate.affinity import base_cosine
from rayface.curate.cluster.assign import Assignment, assign
from rayface.curate.cluster.clustered_dataset import write_clustered
from rayface.curate.cluster.inverted_lists import find_listed_neighbours
from rayface.curate.cluster.label_noise import label_noise
from rayface.curate.cluster.methods import METHODS, merged_clusters
from rayface.curate.cluster.metrics import NOISE, cluster_scores
from rayface.curate.cluster.neighbours import Neighbours, no_neighbours
from rayface.curate.cluster.report import write_report
from rayface.curate.cluster.result import LABELS, REPORT, RESULT, ClusterResult, counts_of, read_result
from rayface.curate.cluster.stream import cluster_stream
from rayface.curate.cluster.threshold import best_threshold, estimated_threshold
from rayface.curate.cluster.unit_vectors import (
    UnitVectors,
    confidences,
    find_neighbours,
    read_keys_and_labels,
    write_unit_vectors,
)
from rayface.curate.job_output import JobOutput, job_output
from rayface.curate.ogmc import OnlineGaussianMixture, radius_of
from rayface.curate.prune.pruned_dataset import check_copied, check_data
from rayface.curate.prune.result import JobFacts, Values
from rayface.curate.work_files import WorkPath
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.elapsed import Laps
from rayface.embedding.embeddings import Embeddings, check_one_model, open_embeddings
from rayface.files import write_json
from rayface.progress import phase
from rayface.ray_tasks import quiet_data
from rayface.session import is_cluster, ray_session, require
from rayface.storage import atomic_stream, normalise
from rayface.tracking.job import tracked_job, was_tracked
from rayface.version import VERSION

_JOB = ".cluster_job.json"


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Inputs of a cluster job, and `job`, the fingerprint that must be equal to resume in `root`, a path or URI."""

    root: str
    source: Embeddings
    labelled: Embeddings | None
    known: Embeddings | None
    dataset: Dataset | None
    job: Values


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Embeddings as unit vectors (N, D) with their labels (N,) and neighbours."""

    vectors: NDArray[np.float32]
    labels: Ints
    neighbours: Neighbours


def cluster(config: Config) -> ClusterResult:
    """Cluster embedded images into identities.

    Writes labels.parquet (key, cluster, confidence), cluster.json and report.html into `clustering.out`, and with
    `clustering.data` a dataset labelled by clusters, on which models are trained like on any other. The result is
    deterministic; an interrupted job resumes when it is run again. With `clustering.stream` see `cluster_stream`.

    Args:
        config: `clustering`; also data.max_corrupt_fraction, data.join, train.wait_for_nodes, tracking and cluster.

    Raises:
        ValueError: bad input, one line.
    """
    if config.clustering.stream:
        return cluster_stream(config)
    start = time.monotonic()
    inputs = _opened(config)
    with job_output(inputs.root, inputs.job, _JOB, key="clustering.out") as output:
        if (result := read_result(output.path)) is not None:
            output.work.delete()  # left by a crash between the two
            if was_tracked(output.folder):
                return result
        with tracked_job(output.folder, config.tracking, inputs.job, output=output.root) as tracked:
            if result is None:
                result = _run(config, inputs, output, start)
            tracked.journal.metrics(_numbers(result), step=0)
            for name in (RESULT, REPORT):
                tracked.journal.artifact(output.path / name)
    return replace(result, tracked=tracked.result(), folder=output.path)


def _run(config: Config, inputs: _Inputs, output: JobOutput, start: float) -> ClusterResult:
    """Cluster in a Ray session and write the result."""
    (output.path / RESULT).unlink(missing_ok=True)  # files that it lists are missing
    debug = config.cluster.debug
    session = ray_session(config.cluster.address, debug=debug, prometheus=config.tracking.prometheus)
    with session, quiet_data(debug):
        if is_cluster(config.cluster.address):
            require({"CPU": 1.0}, 1, wait=config.train.wait_for_nodes, setting="tasks")
        result = _clustered(config, inputs, output)
        result = replace(result, job=replace(result.job, seconds=time.monotonic() - start))
        write_json(output.folder / RESULT, result.as_dict())
        output.finish(RESULT)
    return result


def _opened(config: Config) -> _Inputs:
    """Open the inputs, and refuse contradictory settings before anything is written."""
    settings = config.clustering
    require_keys(config, "clustering.embeddings", "clustering.out")
    root = normalise(str(settings.out))
    source = open_embeddings(str(settings.embeddings), "clustering.embeddings")
    labelled = open_embeddings(settings.calibrate, "clustering.calibrate") if settings.calibrate is not None else None
    known = open_embeddings(settings.assign, "clustering.assign") if settings.assign is not None else None
    for key, other in (("calibrate", labelled), ("assign", known)):
        if other is not None:
            check_one_model(source, other, source_key="clustering.embeddings", key=f"clustering.{key}")
    dataset = None
    if settings.data:
        dataset = open_configured("clustering.data", settings.data, config.data)
        check_data(source, dataset, "clustering.data")
        if settings.write_shards:
            check_copied(dataset, "clustering")
    names = ("method", "threshold", "within", "neighbours", "min_images", "write_shards", "block_size")
    search = {"search": settings.search, "probes": settings.probes} if settings.uses_lists(source.num_rows) else {}
    job = {
        **{name: asdict(settings)[name] for name in names},
        **search,
        **({"merge": True} if settings.merge else {}),
        **({"assign": known.digest, "far": settings.far} if known else {}),
        "embeddings": source.digest,
        "calibrate": labelled.digest if labelled else None,
        "dataset_digest": dataset.digest if dataset else None,
    }
    job = json.loads(json.dumps(job))
    return _Inputs(root=root, source=source, labelled=labelled, known=known, dataset=dataset, job=job)


def _clustered(config: Config, inputs: _Inputs, output: JobOutput) -> ClusterResult:
    """Cluster and write everything but cluster.json."""
    settings, folder, work = config.clustering, output.folder, output.work
    laps = Laps()
    vectors = write_unit_vectors(inputs.source, work / "vectors", settings.block_size)
    keys, labels = read_keys_and_labels(inputs.source)
    neighbours, recall = _neighbours(settings, vectors)
    units = vectors.read()
    own = _Set(vectors=units, labels=labels, neighbours=neighbours)
    laps.end("neighbours")
    threshold, found_by = _threshold(settings, inputs, own, work)
    laps.end("threshold")
    assigned = None
    if inputs.known is not None:
        assigned = assign(vectors, inputs.known, inputs.labelled, work, settings.far, settings.block_size)
    laps.end("assign")
    with phase("cluster", rows=len(labels)):
        clusters = _clusters(settings, own, threshold, assigned)
    laps.end("cluster")
    confidence = confidences(vectors, clusters)
    laps.end("confidence")
    _write_labels(folder / LABELS, keys, clusters, confidence, assigned)
    dataset = None
    if inputs.dataset is not None:
        dataset = write_clustered(output.root, inputs.dataset, keys, clusters, write_shards=settings.write_shards)
    laps.end("write")
    result = ClusterResult(
        method=settings.method,
        threshold=threshold,
        threshold_from=found_by,
        base=base_cosine(units, threshold),
        neighbour_recall=recall,
        assigned=assigned.counts if assigned else None,
        label_noise=label_noise(neighbours, labels, clusters, threshold) if settings.within else None,
        counts=counts_of(clusters),
        scores=cluster_scores(labels, clusters) if labels.min() < labels.max() else None,
        stage_seconds=laps.seconds,
        dataset=dataset,
        job=_facts(settings, inputs),
    )
    with phase("write report"):
        write_report(folder, result, keys, clusters, confidence, inputs.dataset, title=output.name)
    return result


def _neighbours(settings: ClusteringConfig, vectors: UnitVectors) -> tuple[Neighbours, float | None]:
    """Return the neighbours that the method and the threshold need, and their recall unless they are exact."""
    if not settings.needs_neighbours:
        return no_neighbours(vectors.num_rows), None
    if settings.uses_lists(vectors.num_rows):
        return find_listed_neighbours(vectors, settings.neighbours, settings.probes)
    return find_neighbours(vectors, settings.neighbours), None


def _clusters(settings: ClusteringConfig, own: _Set, threshold: float, assigned: Assignment | None) -> Ints:
    """Return the cluster (N,) of each image, numbered by first image; -1: noise."""
    if settings.within:
        parts = _cluster(settings.method, replace(own, neighbours=own.neighbours.within(own.labels)), threshold)
        if settings.merge:
            parts = merged_clusters(own.vectors, own.neighbours, threshold, parts)
        return _without_noise(parts, settings.min_images)
    if assigned is None:
        return _without_noise(_cluster(settings.method, own, threshold), settings.min_images)
    is_known, count = assigned.identity >= 0, len(own.labels)
    groups = np.where(is_known, np.arange(count), -1)  # only strangers are neighbours
    found = _cluster(settings.method, replace(own, neighbours=own.neighbours.within(groups)), threshold)
    return _without_noise(np.where(is_known, count + assigned.identity, found), settings.min_images, is_known)


def _write_labels(
    path: Path, keys: pa.ChunkedArray, clusters: Ints, confidence: NDArray[np.float32], assigned: Assignment | None
) -> None:
    columns = {"key": keys, "cluster": pa.array(clusters), "confidence": pa.array(confidence)}
    if assigned is not None:
        columns |= {name: pa.array(getattr(assigned, name)) for name in ("identity", "score", "margin")}
    with atomic_stream(str(path)) as stream:
        pq.write_table(pa.table(columns), stream)


def _facts(settings: ClusteringConfig, inputs: _Inputs) -> JobFacts:
    created_by = f"rayface {VERSION}"
    return JobFacts(seconds=0.0, embeddings=str(settings.embeddings), config=inputs.job, created_by=created_by)


# Highest threshold to try, as a share of the way from random images to nearest neighbours: with chains of single
# neighbours, as components and density make them, persons come apart only near its end; other methods cut a person into
# poses there.
_MOST = {"cohesive": 0.6, "average": 0.6, "density": 0.95, "components": 0.95}


def _threshold(settings: ClusteringConfig, inputs: _Inputs, own: _Set, work: WorkPath) -> tuple[float, str]:
    """Return the threshold, and what it was taken from."""
    if settings.threshold is not None:
        return settings.threshold, "threshold"
    if inputs.labelled is None:
        name = "cohesive" if settings.method == "ogmc" else settings.method
        method, most = METHODS[name], _MOST[name]
        with phase("estimate threshold", rows=len(own.labels)):
            cosines = own.neighbours.cosines[:, 0]
            found = estimated_threshold(
                own.vectors, cosines, lambda each: method(own.vectors, own.neighbours, each), most
            )
        return found, "estimate"
    vectors = write_unit_vectors(inputs.labelled, work / "labelled", settings.block_size)
    _, labels = read_keys_and_labels(inputs.labelled)
    if labels.min() == labels.max():
        raise ValueError(
            f"clustering.calibrate: {settings.calibrate}: has one label: must be embeddings of several identities"
        )
    near, units = find_neighbours(vectors, settings.neighbours), vectors.read()
    known = _Set(vectors=units, labels=labels, neighbours=near)
    with phase("calibrate threshold", rows=len(labels)):
        threshold, _ = best_threshold(
            units, labels, near.cosines[:, 0], lambda each: _cluster(settings.method, known, each)
        )
    return threshold, "calibrate"


def _cluster(method: str, own: _Set, threshold: float) -> Ints:
    """Return the cluster (N,) of each image."""
    if method != "ogmc":
        return METHODS[method](own.vectors, own.neighbours, threshold)
    base = base_cosine(own.vectors, threshold)
    mixture = OnlineGaussianMixture(radius=radius_of(threshold, base), link=threshold, base=base, min_images=1)
    return mixture.partial_fit(own.vectors).labels_


def _without_noise(clusters: Ints, min_images: int, known: NDArray[np.bool_] | None = None) -> Ints:
    """Return the clusters numbered by their first image; those of fewer images are noise, unless these are known."""
    names, first, own, sizes = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((sizes >= min_images) | (known[first] if known is not None else False))
    numbers = np.full(len(names), NOISE)
    numbers[kept[np.argsort(first[kept])]] = np.arange(len(kept))
    return numbers[own]


def _numbers(result: ClusterResult) -> dict[str, float]:
    """Return the metrics of a tracked job."""
    found = {**asdict(result.counts), "threshold": result.threshold, "seconds": result.job.seconds}
    return {**found, **(asdict(result.scores) if result.scores else {})}
