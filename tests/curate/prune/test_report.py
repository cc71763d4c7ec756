"""The report stands alone, shows what was decided with its pictures and cosines, and is sound HTML."""

import base64
import re
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.arrays import group_offsets
from rayface.config import CleanConfig
from rayface.curate.clean.clean import clean
from rayface.curate.cosines import unit_rows
from rayface.curate.face_nms import suppress_many
from rayface.curate.prune.report import curation_report
from rayface.curate.prune.result import SelectionFigures
from rayface.curate.prune.sampled_images import identity_counts, read_identities
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.synth import synthesize
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """8 drawn people, 6 pictures each, embedded by their colours, and what Face-NMS keeps of them."""
    root = tmp_path_factory.mktemp("curation")
    synthesize(root / "faces", identities=8, images_per_identity=6, seed=0, image_size=48)
    dataset = open_dataset(root / "faces")
    images = [decode_image(sample.jpeg, 48) for sample in read_samples(dataset.shard_paths(), dataset.index)]
    values = np.stack([image[::8, ::8].ravel() for image in images]).astype(np.float32)
    values -= values.mean(axis=0)
    order = np.lexsort((dataset.keys(), dataset.index.label))
    keys, labels, values = np.array(dataset.keys())[order], dataset.index.label[order].astype(np.int64), values[order]
    mixed = np.random.default_rng(0).permutation(len(keys))
    (root / "emb").mkdir()
    for part, rows in enumerate(np.array_split(mixed, 3)):  # shards are not by identity
        batches = [(keys[rows].tolist(), labels[rows], values[rows])]
        write_part(str(root / f"emb/{part}.parquet"), batches, size=values.shape[1], dtype="fp16", note={})
    found = suppress_many(values, group_offsets(labels), 0.6)
    by = [None if k < 0 else str(keys[k]) for k in found.suppressed_by]
    table = {"key": keys, "label": labels, "kept": found.kept, "score": found.score, "suppressed_by": by}
    reason = np.where(found.kept, "kept", "too alike")
    pq.write_table(pa.table({**table, "reason": reason}), root / "core_set.parquet", row_group_size=20)
    options = CleanConfig(outliers=0.5, duplicates=0.1, conflicts=0.5, bytes=True, above=0.9, drop=("outliers",))
    theirs, digests = labels == 3, np.r_[1, 1, np.arange(2, len(keys))]
    test = {"test_embeddings": values[theirs], "test_labels": labels[theirs]}
    report = clean(values, labels, pa.array(keys), options, digests=digests, **test)
    return {
        "root": root,
        "dataset": dataset,
        "keys": keys,
        "labels": labels,
        "values": values,
        "kept": found.kept,
        "by": found.suppressed_by,
        "found": report,
    }


def write(pruned: dict[str, Any], out: Path, **more: Any) -> str:
    root = pruned["root"]
    path = curation_report(out, root / "core_set.parquet", open_embeddings(root / "emb"), **more)
    return path.read_text()


def test_report_with_a_dataset_stands_alone_and_shows_images_with_cosines(pruned: Any, tmp_path: Path) -> None:
    """Every picture is inside; a dropped face has its cosine to the face that it was dropped for."""
    baselines = {"random": SelectionFigures(faces=30, mean_cosine=0.5, shared=0.75)}
    page = write(pruned, tmp_path / "core", dataset=pruned["dataset"], found=pruned["found"], baselines=baselines)
    html5lib.HTMLParser(strict=True).parse(page)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) > 20
    assert decode_image(base64.b64decode(pictures[0]), 48).shape == (48, 48, 3)
    assert 'class="none"' not in page
    kept = pruned["kept"]
    assert f"{kept.sum()} of {len(kept)} ({kept.mean():.1%})" in page
    for title in (
        "Kept and dropped",
        "The worst outliers",
        "The most alike identities",
        "Other methods that keep",
        "What looks",
    ):
        assert title in page
    for title in ("Images that two identities share", "Equal files", "Identities of the test set"):
        assert f"<h2>{title}</h2>" in page
    assert "and label 3 of the test set: 1.000" in page
    units, keys = unit_rows(pruned["values"].astype(np.float16), np.arange(len(kept))), pruned["keys"]
    shown = re.findall(r'face dropped">\s*<img[^>]*alt="([^"]+)"[^>]*>\s*<figcaption>([\d.]+)<', page)
    by = {str(keys[row]): float(units[row] @ units[k]) for row, k in enumerate(pruned["by"]) if k >= 0}
    outliers = dict(zip(*(pruned["found"].outliers[name].to_pylist() for name in ("key", "cosine")), strict=True))
    assert len(shown) > 5
    for key, cosine in shown:
        assert any(abs(float(cosine) - table[key]) < 2e-3 for table in (by, outliers) if key in table)
    assert {path.name for path in (tmp_path / "core/plots").iterdir()} == {"cosines.png", "kept.png"}


def test_report_without_a_dataset_shows_keys(pruned: Any, tmp_path: Path) -> None:
    """And nothing of clean where it did not run."""
    page = write(pruned, tmp_path / "core")
    html5lib.HTMLParser(strict=True).parse(page)
    assert "data:image" not in page
    assert 'class="none"' in page
    assert "What looks wrong" not in page


def test_report_in_a_browser_is_drawn_without_errors(pruned: Any, tmp_path: Path, browser: Any) -> None:
    """Every picture and both plots are there; nothing is complained about."""
    write(pruned, tmp_path, dataset=pruned["dataset"], found=pruned["found"])
    seen = browser(tmp_path / "report.html")
    assert seen.console == []
    assert seen.dom.count("<svg") == 2
    assert seen.dom.count("<img") > 20


def test_read_identities_of_a_few_labels_returns_their_images(pruned: Any) -> None:
    """Out of files that are not by identity, in blocks."""
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
    """Labels of a core set may be others than those of its embeddings."""
    table = pq.read_table(pruned["root"] / "core_set.parquet")
    merged = np.where(pruned["labels"] == 5, 2, pruned["labels"])
    pq.write_table(table.set_column(1, "label", pa.array(merged)), tmp_path / "core_set.parquet")
    (found,) = read_identities(tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), [2])
    assert found.keys == sorted(pruned["keys"][merged == 2].tolist())
    rows = [pruned["keys"].tolist().index(key) for key in found.keys]
    assert (found.embeddings == pruned["values"][rows].astype(np.float16)).all()
    assert read_identities(tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), []) == []


def test_report_of_merged_identities_shows_their_own_labels(pruned: Any, tmp_path: Path) -> None:
    """The core set has one label for both."""
    table = pq.read_table(pruned["root"] / "core_set.parquet")
    pq.write_table(table, tmp_path / "faces.parquet")
    one = table.set_column(1, "label", pa.array(np.zeros(len(table), np.int64)))
    pq.write_table(one, tmp_path / "core_set.parquet")
    more = {"found": pruned["found"], "labelled": tmp_path / "faces.parquet"}
    page = curation_report(
        tmp_path / "out", tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), **more
    ).read_text()
    alike = page.partition("<h2>The most alike identities</h2>")[2].partition("<h2>")[0]
    assert len(pruned["found"].duplicates) > 0
    for group in alike.split('<div class="group">')[1:]:
        assert '<div class="none">' in group


def test_report_with_a_corrupt_image_shows_its_key(pruned: Any, tmp_path: Path) -> None:
    """Its key stands there."""
    shard, index = Path(pruned["dataset"].shards[0].path), pruned["dataset"].index
    key = re.findall(r'alt="([^"]+)"', write(pruned, tmp_path, dataset=pruned["dataset"]))[0]
    row = pruned["dataset"].keys().index(key)
    good, start, count = shard.read_bytes(), int(index.offset[row]), int(index.num_bytes[row])
    try:
        shard.write_bytes(good[:start] + bytes(count) + good[start + count :])
        page = write(pruned, tmp_path, dataset=pruned["dataset"])
    finally:
        shard.write_bytes(good)
    assert f'alt="{key}"' not in page
    assert f'<div class="none">{key}</div>' in page
