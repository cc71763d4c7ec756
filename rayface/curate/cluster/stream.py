"""Online clustering of a folder of embedding files that grows: run again and again, each file is taken exactly once.

All that was taken is in one file, which is replaced as a whole: the mixture, the keys, and the files with their
digests. A job that was killed goes on from it, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.arrays import Ints
from rayface.config import ClusteringConfig, Config, require_keys
from rayface.curate.affinity import base_cosine
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.result import LABELS, RESULT, ClusterResult, counts_of
from rayface.curate.cosines import unit_blocks
from rayface.curate.ogmc import OnlineGaussianMixture, radius_of
from rayface.curate.prune.result import JobFacts, Values
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.embedding.rows import EmbeddingFile, Rows, read_rows
from rayface.files import write_json
from rayface.job_folder import exclusive_job_folder
from rayface.progress import phase
from rayface.storage import DataError, atomic_stream, on_disk, read_bytes
from rayface.version import VERSION

STATE = "stream.npz"
_JOB = ".stream_job.json"
_SAVE_EVERY = 100_000  # images between two saved states


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A file that was taken: its rows, time and digest then."""

    name: str
    num_rows: int
    modified: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _State:
    """What was taken: the mixture, keys and labels in order of arrival, and the files."""

    mixture: OnlineGaussianMixture
    keys: pa.Array
    labels: Ints
    files: tuple[_Taken, ...]


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
    source = open_embeddings(str(settings.embeddings))
    labelled = open_embeddings(settings.calibrate) if settings.calibrate is not None else None
    if labelled is not None and labelled.size != source.size:
        raise ValueError(
            f"clustering.calibrate: its embeddings are of length {labelled.size}, clustering.embeddings of "
            f"{source.size}: both must come from one model"
        )
    job: Values = {
        "stream": str(settings.embeddings),
        "threshold": settings.threshold,
        "calibrate": labelled.digest if labelled else None,
        "min_images": settings.min_images,
    }
    with exclusive_job_folder(str(root), job, _JOB, key="clustering.out"):
        state = _read(root / STATE)
        new = _new_files(source, state)
        with phase("cluster", parts=len(new), rows=sum(file.num_rows for file in new)) as current:
            unsaved = 0
            for file in new:
                state = _taken(state, file, settings, labelled)
                unsaved += file.num_rows
                if unsaved >= _SAVE_EVERY:
                    _write(root / STATE, state)
                    unsaved = 0
                current.advance()
        assert state is not None  # open_embeddings refuses a folder without rows
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


def _taken(
    state: _State | None, file: EmbeddingFile, settings: ClusteringConfig, labelled: Embeddings | None
) -> _State:
    """Return the state with the images of one more file."""
    digest, rows = _digest(file), read_rows(file.path, 0, file.num_rows)
    own = rows.keys.cast(pa.string())
    counts = pc.value_counts(own)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if state is not None:
        repeated = pa.concat_arrays([repeated, own.filter(pc.is_in(own, state.keys))])
    if len(repeated):
        raise DataError(f"{file.path}: key: {repeated[0].as_py()!r}: occurs twice: must be once in the stream")
    if state is None:
        state = _State(
            mixture=_mixture(rows, settings, labelled), keys=own.slice(0, 0), labels=np.empty(0, np.int64), files=()
        )
    state.mixture.partial_fit(rows.embeddings)
    entry = _Taken(name=PurePosixPath(file.path).name, num_rows=file.num_rows, modified=file.modified, sha256=digest)
    return replace(
        state,
        keys=pa.concat_arrays([state.keys, own]),
        labels=np.concatenate([state.labels, rows.labels]),
        files=(*state.files, entry),
    )


def _mixture(rows: Rows, settings: ClusteringConfig, labelled: Embeddings | None) -> OnlineGaussianMixture:
    """Return a mixture without images: calibrated, or by the threshold and the first file's cosines of strangers."""
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
    base = base_cosine(np.concatenate(list(unit_blocks(rows.embeddings))).astype(np.float32), threshold)
    return OnlineGaussianMixture(
        radius=radius_of(threshold, base), link=threshold, base=base, min_images=settings.min_images
    )


def _digest(file: EmbeddingFile) -> str:
    return hashlib.sha256(read_bytes(file.path)).hexdigest()


def _write(path: Path, state: _State) -> None:
    mixture, keys = io.BytesIO(), pa.BufferOutputStream()
    state.mixture.save(mixture)
    table = pa.table({"key": state.keys})
    with pa.ipc.new_stream(keys, table.schema) as writer:
        writer.write_table(table)
    files = json.dumps([asdict(file) for file in state.files]).encode()
    arrays = {"mixture": mixture.getvalue(), "keys": keys.getvalue(), "files": files}
    with atomic_stream(str(path)) as stream:
        np.savez(
            stream,
            allow_pickle=False,
            labels=state.labels,
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
            keys = pa.ipc.open_stream(found["keys"].tobytes()).read_all()["key"].combine_chunks()
            return _State(
                mixture=OnlineGaussianMixture.load(io.BytesIO(found["mixture"].tobytes())),
                keys=keys,
                labels=found["labels"],
                files=tuple(_Taken(**file) for file in json.loads(found["files"].tobytes())),
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
        pq.write_table(pa.table({"key": state.keys, "cluster": pa.array(clusters)}), stream)
    facts = JobFacts(seconds=seconds, embeddings=str(settings.embeddings), config=job, created_by=f"rayface {VERSION}")
    result = ClusterResult(
        method="ogmc",
        threshold=own.link,
        threshold_from="threshold" if settings.threshold is not None else "calibrate",
        base=own.base,
        counts=counts_of(clusters),
        scores=cluster_scores(state.labels, clusters) if state.labels.min() < state.labels.max() else None,
        stage_seconds={},
        job=facts,
        folder=root,
    )
    write_json(root / RESULT, result.as_dict())
    return result
