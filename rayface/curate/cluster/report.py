"""Report of clusters, one HTML file: counts, scores, sizes and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.cluster.result import REPORT, ClusterResult
from rayface.curate.prune.contact_sheets import Face, Row, Sheet, add_pictures
from rayface.data.dataset import Dataset
from rayface.files import write_file
from rayface.report import HALF, PALETTE, Plot, as_svg, load_template, new_axes, write_pngs
from rayface.version import VERSION

_ROWS = 12
_FACES = 12
_FOUND = {"threshold": "given", "calibrate": "calibrated", "estimate": "estimated"}


def write_report(
    out: Path,
    result: ClusterResult,
    keys: pa.ChunkedArray,
    clusters: Ints,
    confidence: NDArray[np.float32],
    dataset: Dataset | None,
    *,
    title: str,
) -> None:
    """Write the self-contained report.html into `out`, and its plots as PNG.

    Args:
        keys, clusters, confidence: (N,), the columns of labels.parquet.
        dataset: without it the page shows keys instead of images.
        title: title of the page.
    """
    sheets = [sheet for sheet in _sheets(keys, clusters, confidence) if sheet.rows]
    if dataset is not None:
        add_pictures(sheets, dataset)
    plots = [
        Plot("sizes", "Clusters, by their number of images", _size_figure(clusters)),
        Plot("confidence", "Images, by the confidence of their cluster", _confidence_figure(confidence[clusters >= 0])),
    ]
    write_pngs(out / "plots", plots)
    page = load_template("curation.html").render(
        title=title,
        table=_table(result),
        plots=[{"caption": plot.caption, "wide": plot.wide, "svg": as_svg(plot)} for plot in plots],
        palette=PALETTE,
        config="",
        listings=[],
        sheets=sheets,
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_file(out / REPORT, page.encode())


def _table(result: ClusterResult) -> list[tuple[str, str]]:
    counts, scores = result.counts, result.scores
    rows = [
        ("images", f"{counts.images:,}"),
        ("clusters", f"{counts.clusters:,}, the largest of {counts.largest:,} images"),
        ("images in no cluster", f"{counts.noise:,}"),
        ("method", result.method),
        ("threshold", f"{result.threshold:.4f} ({_FOUND[result.threshold_from]}; random pairs: {result.base:.4f})"),
    ]
    if scores is not None:
        triple = "{:.3f} (precision {:.3f}, recall {:.3f})"
        pairwise = triple.format(scores.pairwise_f, scores.pairwise_precision, scores.pairwise_recall)
        bcubed = triple.format(scores.bcubed_f, scores.bcubed_precision, scores.bcubed_recall)
        rows += [
            ("pairwise F against the labels", pairwise),
            ("BCubed F", bcubed),
            ("NMI, purity", f"{scores.nmi:.3f}, {scores.purity:.3f}"),
            ("labels", f"{scores.num_labels:,}"),
        ]
    return rows


def _sheets(keys: pa.ChunkedArray, clusters: Ints, confidence: NDArray[np.float32]) -> list[Sheet]:
    """Return clusters of all sizes with their images, and the least confident images beside their cluster's best."""
    order = np.lexsort((-confidence, clusters))
    order = order[clusters[order] >= 0]
    starts = np.flatnonzero(np.r_[True, np.diff(clusters[order]) > 0]) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    by_size = np.argsort(-sizes, kind="stable")
    shown = by_size[np.unique(np.linspace(0, len(by_size) - 1, _ROWS).astype(int))] if len(by_size) else by_size
    rows = []
    for place in shown.tolist():
        members = order[starts[place] : starts[place] + sizes[place]]
        some = members[np.unique(np.linspace(0, len(members) - 1, _FACES).astype(int))]
        rows.append(_row(f"cluster {clusters[members[0]]}: {len(members):,} images", [some], keys, confidence))
    doubtful = order[np.argsort(confidence[order], kind="stable")][:_ROWS]
    doubts = []
    for image in doubtful.tolist():
        place = int(np.searchsorted(clusters[order[starts]], clusters[image]))
        members = order[starts[place] : starts[place] + min(6, sizes[place])]
        who = f"cluster {clusters[image]}: {sizes[place]:,} images"
        doubts.append(_row(who, [np.array([image]), members[members != image]], keys, confidence))
    caption = (
        "Some of each size, largest first; images by confidence, the silhouette: how much closer the image is to its "
        "cluster than to the next."
    )
    return [
        Sheet(title="Clusters", caption=caption, rows=rows),
        Sheet(title="Least confident images", caption="Beside the most confident ones of their cluster.", rows=doubts),
    ]


def _row(who: str, groups: Sequence[Ints], keys: pa.ChunkedArray, confidence: NDArray[np.float32]) -> Row:
    return Row(
        who=who,
        groups=[
            [Face(key=keys[row].as_py(), caption=f"{confidence[row]:.2f}") for row in group.tolist()]
            for group in groups
        ],
    )


def _size_figure(clusters: Ints) -> Figure:
    figure, axes = new_axes(HALF, "images of the cluster", "clusters")
    sizes = np.bincount(clusters[clusters >= 0])
    lows = 2 ** np.arange(int(np.log2(max(1, sizes.max(initial=1)))) + 1)
    counts = np.bincount(np.log2(np.maximum(1, sizes)).astype(int), minlength=len(lows))
    names = [f"{low}" if low == 1 else f"{low} to {2 * low - 1}" for low in lows.tolist()]
    axes.bar(range(len(names)), counts, color=PALETTE["green"], width=0.7)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
    return figure


def _confidence_figure(confidence: NDArray[np.float32]) -> Figure:
    figure, axes = new_axes(HALF, "confidence (silhouette)", "images")
    axes.hist(confidence, np.linspace(-1, 1, 81).tolist(), color=PALETTE["blue"])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
