"""Online clustering of a folder of embedding files that grows: run again and again, each file is taken exactly once.

All that was taken is in one file, which is replaced as a whole: the mixture, the keys, and the files with their
digests. A job that was killed resumes from it, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.config import ClusteringConfig, Config, require_keys
from rayface.curate.affinity import base_cosine, pairs_below
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.result import LABELS, RESULT, ClusterResult, counts_of
from rayface.curate.cosines import unit_blocks
from rayface.curate.ogmc import OnlineGaussianMixture, radius_of
from rayface.curate.prune.result import JobFacts, Values
from rayface.embedding.embeddings import Embeddings, check_one_model, open_embeddings
from rayface.embedding.rows import EmbeddingFile, read_keys, read_rows
from rayface.files import write_json
from rayface.job_folder import exclusive_job_folder
from rayface.progress import phase
from rayface.storage import DataError, atomic_stream, on_disk, read_bytes
from rayface.storage.reads import refuse_extensions
from rayface.version import VERSION

logger = logging.getLogger(__name__)

STATE = "stream.npz"
_JOB = ".stream_job.json"
_SAVE_EVERY = 100_000  # images between two saved states, at least
_SAVE_SHARE = 1 / 8  # of all images, between two saved states: all that is written grows with the images alone
_STRANGERS = 500  # pairs of images of two persons that the base cosine should rest on
_BASE_IMAGES = 65_536  # images from which on no more files are read for it


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A file that was taken: its rows, time and digest then."""

    name: str
    num_rows: int
    modified: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _State:
    """What was taken: the mixture, keys and labels in order of arrival, in parts, and the files; all grow in place."""

    mixture: OnlineGaussianMixture
    keys: list[pa.Array]
    labels: list[Ints]
    files: list[_Taken]

    def table(self, **columns: pa.Array) -> pa.Table:
        """Return the keys with more columns, in few chunks, so that what is written does not tell how it grew."""
        return pa.table({"key": pa.chunked_array(self.keys, pa.string()), **columns}).combine_chunks()


def cluster_stream(config: Config) -> ClusterResult:
    """Cluster the new files of clustering.embeddings into the identities found so far.

    Writes stream.npz (the state), labels.parquet (key, cluster; in order of arrival) and cluster.json.

    Raises:
        ValueError: bad input, one line.
        DataError: a file has changed since it was taken, or a key was taken before.
    """
    start, settings = time.monotonic(), config.clustering
    require_keys(config, "clustering.embeddings", "clustering.out")
    root = on_disk(str(settings.out), "clustering.out").absolute()
    source = open_embeddings(str(settings.embeddings), "clustering.embeddings")
    labelled = open_embeddings(settings.calibrate, "clustering.calibrate") if settings.calibrate is not None else None
    if labelled is not None:
        check_one_model(source, labelled, source_key="clustering.embeddings", key="clustering.calibrate")
    job: Values = {
        "stream": str(settings.embeddings),
        "threshold": settings.threshold,
        "calibrate": labelled.digest if labelled else None,
        "min_images": settings.min_images,
    }
    with exclusive_job_folder(str(root), job, _JOB, key="clustering.out"):
        state = _read(root / STATE)
        new = _new_files(source, state)
        _refuse_repeated(new, state)
        if state is None:  # open_embeddings refuses a folder without rows
            state = _State(mixture=_mixture(new, settings, labelled), keys=[], labels=[], files=[])
        with phase("cluster", parts=len(new), rows=sum(file.num_rows for file in new)) as current:
            unsaved = 0
            for file in new:
                _take(state, file)
                unsaved += file.num_rows
                if unsaved >= max(_SAVE_EVERY, state.mixture.num_images * _SAVE_SHARE):
                    _write(root / STATE, state)
                    unsaved = 0
                current.advance()
        if unsaved:
            _write(root / STATE, state)
        return _written(root, state, settings, job, time.monotonic() - start)


def _new_files(source: Embeddings, state: _State | None) -> list[EmbeddingFile]:
    """Return the files that were not taken, by name; those that were must not have changed."""
    taken = {file.name: file for file in state.files} if state else {}
    new = []
    for file in source.files:
        before = taken.get(PurePosixPath(file.path).name)
        if before is None:
            new += [file] if file.num_rows else []
        elif (before.num_rows, before.modified) != (file.num_rows, file.modified) and before.sha256 != _digest(file):
            raise DataError(
                f"{file.path}: has changed since it was clustered: restore it, or cluster the folder into another one"
            )
    return new


def _refuse_repeated(files: list[EmbeddingFile], state: _State | None) -> None:
    """Raise DataError for a key that occurs twice in new files, or was taken; looks at all keys once a run."""
    if not files:
        return
    keys = {file.path: list(read_keys(file)) for file in files}
    whole = pa.chunked_array([*(state.keys if state else []), *itertools.chain(*keys.values())], pa.string())
    counts = pc.value_counts(whole)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        key = repeated[0]
        path = next(path for path in reversed(keys) if pc.index(pa.chunked_array(keys[path]), key).as_py() >= 0)
        raise DataError(f"{path}: key: {key.as_py()!r}: occurs twice: must be once in the stream")


def _take(state: _State, file: EmbeddingFile) -> None:
    """Add the images of one more file."""
    digest, rows = _digest(file), read_rows(file.path, 0, file.num_rows)
    state.mixture.partial_fit(rows.embeddings)
    name = PurePosixPath(file.path).name
    state.files.append(_Taken(name=name, num_rows=file.num_rows, modified=file.modified, sha256=digest))
    state.keys.append(rows.keys)
    state.labels.append(rows.labels)


def _mixture(
    files: list[EmbeddingFile], settings: ClusteringConfig, labelled: Embeddings | None
) -> OnlineGaussianMixture:
    """Return a mixture without images: calibrated, or by the threshold and the cosines of strangers."""
    if labelled is not None:
        known = [read_rows(file.path, 0, file.num_rows) for file in labelled.files if file.num_rows]
        labels = np.concatenate([each.labels for each in known])
        if labels.min() == labels.max():
            raise ValueError(
                f"clustering.calibrate: {settings.calibrate}: has one label: must be embeddings of several identities"
            )
        vectors = np.concatenate([each.embeddings for each in known])
        return OnlineGaussianMixture.calibrated(vectors, labels, min_images=settings.min_images)
    threshold = settings.threshold
    assert threshold is not None
    base = _base(files, threshold)
    return OnlineGaussianMixture(
        radius=radius_of(threshold, base), link=threshold, base=base, min_images=settings.min_images
    )


def _base(files: list[EmbeddingFile], threshold: float) -> float:
    """Return the median cosine of strangers in the first files, of as many as have enough pairs of them.

    A file may hold images of one person alone, so at least half of all pairs must be below the threshold.
    """
    units: list[NDArray[np.float32]] = []
    count, measured, pairs, share = 0, 0, 0, 0.0
    for file in files:
        units += [block.astype(np.float32) for block in unit_blocks(read_rows(file.path, 0, file.num_rows).embeddings)]
        count += file.num_rows
        if count >= 2 * measured or file == files[-1]:
            measured, (pairs, share) = count, pairs_below(np.concatenate(units), threshold)
            if (pairs >= _STRANGERS and share >= 0.5) or count >= _BASE_IMAGES:
                break
    base = base_cosine(np.concatenate(units), threshold)
    if pairs < _STRANGERS or share < 0.5:
        logger.warning(
            f"clustering.embeddings: the cosine of strangers, {base:.3f}, rests on {pairs} pairs below the threshold "
            f"{threshold}, {share:.0%} of all, and is kept: begin with images of more persons, or set "
            "clustering.calibrate"
        )
    return base


def _digest(file: EmbeddingFile) -> str:
    return hashlib.sha256(read_bytes(file.path)).hexdigest()


def _write(path: Path, state: _State) -> None:
    mixture, keys = io.BytesIO(), pa.BufferOutputStream()
    state.mixture.save(mixture)
    table = state.table()
    with pa.ipc.new_stream(keys, table.schema) as writer:
        writer.write_table(table)
    files = json.dumps([asdict(file) for file in state.files]).encode()
    arrays = {"mixture": mixture.getvalue(), "keys": keys.getvalue(), "files": files}
    with atomic_stream(str(path)) as stream:
        np.savez(
            stream,
            allow_pickle=False,
            labels=np.concatenate(state.labels),
            **{name: np.frombuffer(content, np.uint8) for name, content in arrays.items()},
        )


def _read(path: Path) -> _State | None:
    """Return the state that a former run left.

    Raises:
        DataError: it is corrupt.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            keys = pa.ipc.open_stream(found["keys"].tobytes())
            refuse_extensions(str(path), keys.schema)
            return _State(
                mixture=OnlineGaussianMixture.load(io.BytesIO(found["mixture"].tobytes())),
                keys=keys.read_all()["key"].chunks,
                labels=[found["labels"]],
                files=[_Taken(**file) for file in json.loads(found["files"].tobytes())],
            )
    except OSError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: is corrupt ({type(error).__name__}): restore it, or cluster the folder into another one"
        ) from None


def _written(root: Path, state: _State, settings: ClusteringConfig, job: Values, seconds: float) -> ClusterResult:
    """Write labels.parquet and cluster.json."""
    clusters, own = state.mixture.labels_, state.mixture.settings
    with atomic_stream(str(root / LABELS)) as stream:
        pq.write_table(state.table(cluster=pa.array(clusters)), stream)
    labels = np.concatenate(state.labels)
    facts = JobFacts(seconds=seconds, embeddings=str(settings.embeddings), config=job, created_by=f"rayface {VERSION}")
    result = ClusterResult(
        method="ogmc",
        threshold=own.link,
        threshold_from="threshold" if settings.threshold is not None else "calibrate",
        base=own.base,
        counts=counts_of(clusters),
        scores=cluster_scores(labels, clusters) if labels.min() < labels.max() else None,
        stage_seconds={},
        job=facts,
        folder=root,
    )
    write_json(root / RESULT, result.as_dict())
    return result
