"""Counts of the identities of a core set, and the images of a few."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayface.curate.prune.sampled_images import identity_counts, read_identities
from rayface.embedding.embeddings import open_embeddings


def test_read_identities_of_a_few_labels_returns_their_images(pruned: Any) -> None:
    """The files are not by identity, and are read in blocks."""
    root, labels, kept = pruned["root"], pruned["labels"], pruned["kept"]
    names, sizes, left = identity_counts(root / "core_set.parquet")
    assert names.tolist() == list(range(8))
    assert sizes.tolist() == [6] * 8
    assert left.tolist() == [int(kept[labels == k].sum()) for k in range(8)]
    for identity in read_identities(root / "core_set.parquet", open_embeddings(root / "emb"), [5, 2]):
        rows = labels == identity.label
        assert identity.keys == pruned["keys"][rows].tolist()
        assert (identity.kept == kept[rows]).all()
        assert (identity.embeddings == pruned["values"][rows].astype(np.float16)).all()


def test_read_identities_of_merged_labels_finds_them_by_key(pruned: Any, tmp_path: Path) -> None:
    """Merged labels of a core set differ from those of its embeddings."""
    table = pq.read_table(pruned["root"] / "core_set.parquet")
    merged = np.where(pruned["labels"] == 5, 2, pruned["labels"])
    pq.write_table(table.set_column(1, "label", pa.array(merged)), tmp_path / "core_set.parquet")
    (found,) = read_identities(tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), [2])
    assert found.keys == sorted(pruned["keys"][merged == 2].tolist())
    rows = [pruned["keys"].tolist().index(key) for key in found.keys]
    assert (found.embeddings == pruned["values"][rows].astype(np.float16)).all()
    assert read_identities(tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), []) == []
