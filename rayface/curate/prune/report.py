"""Report of a core set, one HTML file: cosines before and after, dropped images, findings of cleaning."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.clean.findings import Findings
from rayface.curate.cosines import unit_rows
from rayface.curate.prune.contact_sheets import add_pictures, dropped_sheet, found_sheets, labels_shown
from rayface.curate.prune.result import SelectionFigures
from rayface.curate.prune.sampled_images import Identity, identity_counts, keys_of, read_identities
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import Embeddings
from rayface.files import write_file
from rayface.report import (
    HALF,
    PALETTE,
    Listing,
    Plot,
    Sheet,
    add_legend,
    as_svg,
    label_bars,
    load_template,
    new_axes,
    percent_ticks,
    write_pngs,
)
from rayface.version import VERSION

_SAMPLED = 300  # identities
_SAMPLED_IMAGES = 20_000
_LARGEST = 1000  # images of a sampled identity: all its pairs are plotted


def curation_report(
    out: Path,
    core_set: Path,
    embeddings: Embeddings,
    *,
    dataset: Dataset | None = None,
    found: Findings | None = None,
    labelled: Path | None = None,
    table: Sequence[tuple[str, str]] = (),
    baselines: Mapping[str, SelectionFigures] | None = None,
    seed: int = 0,
    title: str,
) -> Path:
    """Write the self-contained report.html into `out`, and its plots as PNG.

    Args:
        core_set: core_set.parquet.
        embeddings: embeddings of all images.
        dataset: the embedded dataset; without it the page shows keys instead of images.
        found: findings of `clean`.
        labelled: parquet with the keys of all images and the labels that `found` refers to, if those of `core_set` are
            merged.
        table: rows (name, value) of the first table.
        baselines: figures of the core set and of other methods, by name.
        seed: seed of the identities sampled for the page.
        title: title of the page.

    Returns:
        report.html. Memory: 32 bytes per identity, up to 20,000 embeddings, and the keys of `dataset`.
    """
    labels, sizes, kept = identity_counts(core_set)
    identities = read_identities(core_set, embeddings, _sampled(labels, sizes, seed))
    sheets = _sheets(identities, core_set, dataset, found, labelled)
    plots = _plots(identities, sizes, kept)
    out.mkdir(parents=True, exist_ok=True)
    write_pngs(out / "plots", plots)
    page = load_template("curation.html").render(
        title=title,
        table=[*_counts(sizes, kept), *table],
        plots=[{"caption": plot.caption, "wide": plot.wide, "svg": as_svg(plot)} for plot in plots],
        palette=PALETTE,
        config="",
        listings=[*_baselines(baselines or {}), *_found(found)],
        sheets=sheets,
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return write_file(out / "report.html", page.encode())


def _sheets(
    identities: Sequence[Identity],
    core_set: Path,
    dataset: Dataset | None,
    found: Findings | None,
    labelled: Path | None,
) -> list[Sheet]:
    names = {} if dataset is None or dataset.identities is None else dict(enumerate(dataset.identities))
    sheets = [dropped_sheet(identities, names)]
    if found is not None:
        sheets += found_sheets(found, keys_of(labelled or core_set, labels_shown(found), 6), names)
    sheets = [sheet for sheet in sheets if sheet.rows]
    if dataset is not None:
        add_pictures(sheets, dataset)
    return sheets


def _plots(identities: Sequence[Identity], sizes: Ints, kept: Ints) -> list[Plot]:
    before, after = (_pair_cosines(identities, only_kept=flag) for flag in (False, True))
    caption = f"Cosines within an identity, {len(identities):,} random identities"
    return [
        Plot("cosines", caption, _histogram(before, after)),
        Plot("kept", "Images kept, by the size of the identity", _by_size(sizes, kept)),
    ]


def _sampled(labels: Ints, sizes: Ints, seed: int) -> list[int]:
    """Return the labels of random identities with two images or more."""
    several = np.flatnonzero((sizes > 1) & (sizes <= _LARGEST))
    few = np.random.default_rng(seed).permutation(several)[:_SAMPLED]
    few = few[np.cumsum(sizes[few]) <= _SAMPLED_IMAGES]
    return labels[few].tolist()


def _pair_cosines(identities: Sequence[Identity], *, only_kept: bool) -> NDArray[np.float64]:
    found = [np.zeros(0)]
    for identity in identities:
        rows = np.flatnonzero(identity.kept) if only_kept else np.arange(len(identity.kept))
        units = unit_rows(identity.embeddings, rows)
        found.append((units @ units.T)[np.triu_indices(len(rows), 1)])
    return np.concatenate(found)


def _histogram(before: NDArray[np.float64], after: NDArray[np.float64]) -> Figure:
    figure, axes = new_axes(HALF, "cosine of two images", "share of the pairs")
    both = np.append(before, 1)
    bins = np.linspace(min(0, float(both.min())), 1, 61).tolist()
    for values, name, colour in ((before, "before", "blue"), (after, "after", "orange")):
        shares = np.full(len(values), 1 / max(1, len(values)))
        label = f"{name}: {len(values):,} pairs"
        axes.hist(values, bins, weights=shares, histtype="stepfilled", color=PALETTE[colour], alpha=0.35, label=label)
        axes.hist(values, bins, weights=shares, histtype="step", color=PALETTE[colour], linewidth=1.6)
    percent_ticks(axes.yaxis)
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend
    add_legend(axes)
    return figure


def _by_size(sizes: Ints, kept: Ints) -> Figure:
    figure, axes = new_axes(HALF, "images of the identity", "kept")
    lows = 2 ** np.arange(int(np.log2(sizes.max())) + 1)
    group = np.log2(sizes).astype(int)
    total, left = (np.bincount(group, weights=values, minlength=len(lows)) for values in (sizes, kept))
    some = total > 0
    names = [f"{low}" if low == 1 else f"{low} to {2 * low - 1}" for low in lows[some].tolist()]
    share = left[some] / total[some]
    axes.bar(range(len(names)), share, color=PALETTE["green"], width=0.7)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
    axes.set_ylim(0, 1.08)
    percent_ticks(axes.yaxis)
    label_bars(axes, share.tolist(), "{:.0%}")
    return figure


def _counts(sizes: Ints, kept: Ints) -> list[tuple[str, str]]:
    share, gone = kept.sum() / sizes.sum(), np.count_nonzero(kept == 0)
    return [
        ("images kept", f"{kept.sum():,} of {sizes.sum():,} ({share:.1%})"),
        ("identities", f"{len(sizes):,}, {f'{gone:,} of them without an image left' if gone else 'none lost'}"),
    ]


def _baselines(baselines: Mapping[str, SelectionFigures]) -> list[Listing]:
    if not baselines:
        return []
    rows = [[name, f"{own.faces:,}", f"{own.mean_cosine:.3f}", f"{own.shared:.3f}"] for name, own in baselines.items()]
    caption = "Mean cosine: of an image to the others of its identity. Shared: share of the images that are kept here."
    columns = ["method", "images", "mean cosine", "shared"]
    return [Listing(title="Other methods at the same number of images", caption=caption, columns=columns, rows=rows)]


def _found(found: Findings | None) -> list[Listing]:
    if found is None:
        return []
    parts: list[tuple[str, Any, str]] = [
        ("images far from the mean of their identity", found.outliers, "outlier"),
        ("pairs of similar identities", found.duplicates, ""),
        ("pairs of images that two identities share", found.conflicts, "conflict"),
        ("images equal to another", found.bytes, "same bytes"),
        ("pairs with an identity of the test set", found.test, "in the test set"),
    ]
    rows = [
        [what, f"{len(part):,}", f"{found.num_dropped[reason]:,}" if reason else "-"]
        for what, part, reason in parts
        if len(part)
    ]
    caption = "Results of the configured searches. Images are dropped only if configured."
    return [Listing(title="Findings", caption=caption, columns=["what", "found", "images dropped"], rows=rows)]
