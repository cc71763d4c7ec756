"""The report is one valid HTML file that shows the decisions with images and cosines."""

import base64
import re
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayface.curate.cosines import unit_rows
from rayface.curate.prune.report import curation_report
from rayface.curate.prune.result import SelectionFigures
from rayface.data.decode import decode_image
from rayface.embedding.embeddings import open_embeddings


def write(pruned: dict[str, Any], out: Path, **more: Any) -> str:
    root = pruned["root"]
    path = curation_report(out, root / "core_set.parquet", open_embeddings(root / "emb"), title=out.name, **more)
    return path.read_text()


def test_report_with_a_dataset_stands_alone_and_shows_images_with_cosines(pruned: Any, tmp_path: Path) -> None:
    """Every image is embedded; a dropped one has its cosine to the image it was dropped for."""
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
        "Strongest outliers",
        "Most similar identities",
        "Other methods at the same number",
        "<h2>Findings</h2>",
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
    """Without cleaning, it has no section about it."""
    page = write(pruned, tmp_path / "core")
    html5lib.HTMLParser(strict=True).parse(page)
    assert "data:image" not in page
    assert 'class="none"' in page
    assert "<h2>Findings</h2>" not in page


def test_report_in_a_browser_is_drawn_without_errors(pruned: Any, tmp_path: Path, browser: Any) -> None:
    """Every image and both plots are there; the console is empty."""
    write(pruned, tmp_path, dataset=pruned["dataset"], found=pruned["found"])
    seen = browser(tmp_path / "report.html")
    assert seen.console == []
    assert seen.dom.count("<svg") == 2
    assert seen.dom.count("<img") > 20


def test_report_of_merged_identities_shows_their_own_labels(pruned: Any, tmp_path: Path) -> None:
    """The core set has one label for both."""
    table = pq.read_table(pruned["root"] / "core_set.parquet")
    pq.write_table(table, tmp_path / "faces.parquet")
    one = table.set_column(1, "label", pa.array(np.zeros(len(table), np.int64)))
    pq.write_table(one, tmp_path / "core_set.parquet")
    more = {"title": "out", "found": pruned["found"], "labelled": tmp_path / "faces.parquet"}
    page = curation_report(
        tmp_path / "out", tmp_path / "core_set.parquet", open_embeddings(pruned["root"] / "emb"), **more
    ).read_text()
    alike = page.partition("<h2>Most similar identities</h2>")[2].partition("<h2>")[0]
    assert len(pruned["found"].duplicates) > 0
    for group in alike.split('<div class="group">')[1:]:
        assert '<div class="none">' in group


def test_report_with_a_corrupt_image_shows_its_key(pruned: Any, tmp_path: Path) -> None:
    """In the place of the image."""
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
