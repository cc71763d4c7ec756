"""Outcome of every pair of a verification, on disk beside evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Bools, Ints
from rayface.evaluation.intervals import Floats, IdentityBootstrap
from rayface.models.run_files import PAIR_SCORES
from rayface.storage import DataError, atomic_stream, join, one_line, path_of
from rayface.storage.parquet import open_parquet

_SCHEMA = pa.schema(
    {
        "protocol": pa.string(),
        "path_a": pa.string(),
        "path_b": pa.string(),
        "is_same": pa.bool_(),
        "fold": pa.int64(),
        "score": pa.float64(),
        "accepted": pa.bool_(),
        "identity_a": pa.int64(),
        "identity_b": pa.int64(),
        "quality": pa.float32(),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """Outcome of P pairs, in the order of the pairs file.

    Attributes:
        path_a, path_b: names of the images.
        is_same: ground truth, (P,).
        fold: fold of each pair, (P,).
        score: cosine, (P,).
        accepted: whether the pair is classified as the same person at the threshold of its fold, (P,).
        identity_a, identity_b: numbers of the identities, see `pair_identities`, (P,).
        quality: the lower norm of the two raw embeddings, (P,); NaN if unknown.
    """

    path_a: Sequence[str]
    path_b: Sequence[str]
    is_same: Bools
    fold: Ints
    score: NDArray[np.float64]
    accepted: Bools
    identity_a: Ints
    identity_b: Ints
    quality: NDArray[np.float32]

    @property
    def is_right(self) -> Bools:
        """Whether the pair is classified correctly, (P,)."""
        return self.accepted == self.is_same

    def bootstrap(self, replicates: int, seed: int = 0) -> IdentityBootstrap:
        """Return the replicates of the list; equal for all models that were measured on it."""
        return IdentityBootstrap(self.identity_a, self.identity_b, replicates=replicates, seed=seed)

    def accuracies(self, bootstrap: IdentityBootstrap) -> Floats:
        """Return the mean accuracy of the folds in each replicate, (R,), at the unchanged thresholds of the folds."""
        return bootstrap.shares(self.is_right, self.fold, self.is_same)

    def as_table(self, protocol: str) -> pa.Table:
        """Return the rows of pair_scores.parquet."""
        columns = {name: getattr(self, name) for name in _SCHEMA.names[1:]}
        return pa.table({"protocol": [protocol] * len(self.is_same), **columns}, schema=_SCHEMA)


def pair_identities(labels: ArrayLike | None, a: ArrayLike, b: ArrayLike, is_same: ArrayLike) -> Ints:
    """Return the identities of images, from genuine pairs and, if they agree with the pairs, labels.

    Images are of one identity if they have one label or are connected by genuine pairs. Labels that make an impostor
    pair one identity are not those of identities (in a list without names they may number images), and are ignored.

    Args:
        labels: (n,) labels of the images in their dataset; None: unknown.
        a, b: (P,) images of each pair.
        is_same: (P,) ground truth.

    Returns:
        (n,) numbers of the identities.
    """
    first, second, same = np.asarray(a), np.asarray(b), np.asarray(is_same, bool)
    n = max(int(np.max(first)), int(np.max(second))) + 1 if labels is None else len(np.asarray(labels))
    edges = np.stack([first[same], second[same]])
    if labels is not None:
        _, one_each, group = np.unique(labels, return_index=True, return_inverse=True)
        found = _components(n, np.concatenate([edges, np.stack([np.arange(n), one_each[group]])], axis=1))
        if not (found[first] == found[second])[~same].any():
            return found
    return _components(n, edges)


def _components(n: int, edges: Ints) -> Ints:
    # Imported by every verb, which it would take .1 s longer.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def write_pair_scores(folder: str, scores: Mapping[str, PairScores]) -> None:
    """Write pair_scores.parquet into a folder, with the scores by protocol; if there are none, delete an older one."""
    if not scores:
        (path_of(folder) / PAIR_SCORES).unlink(missing_ok=True)
        return
    table = pa.concat_tables([each.as_table(protocol) for protocol, each in scores.items()])
    with atomic_stream(join(folder, PAIR_SCORES)) as stream:
        pq.write_table(table, stream)


def read_pair_scores(folder: str) -> dict[str, PairScores]:
    """Read pair_scores.parquet of a run directory or an output of `rayface evaluate`; return the scores by protocol.

    Raises:
        DataError: there is none, or it is corrupt; one line.
    """
    path = join(folder, PAIR_SCORES)
    try:
        with open_parquet(path) as file:
            table = file.read().select(_SCHEMA.names).cast(_SCHEMA)
    except DataError:
        raise DataError(
            f"{folder}: has no {PAIR_SCORES}: must be a run directory or the output of `rayface evaluate` on pairs; "
            "evaluate the model again"
        ) from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: is corrupt ({one_line(error)}): evaluate the model again") from None
    protocols = table["protocol"].unique().to_pylist()
    return {name: _scores(table.filter(pc.equal(table["protocol"], name))) for name in protocols}


def _scores(table: pa.Table) -> PairScores:
    columns = {name: table[name].combine_chunks() for name in _SCHEMA.names[1:]}
    paths = {name: columns.pop(name).to_pylist() for name in ("path_a", "path_b")}
    return PairScores(**paths, **{name: each.to_numpy(zero_copy_only=False) for name, each in columns.items()})
