"""Report of a training run: one HTML page and its figures."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rayface.curves import Series, draw_curves
from rayface.evaluation.plots import evaluation_plots
from rayface.report import PALETTE, as_svg, load_template, write_pngs
from rayface.training.run_directory import RunDirectory
from rayface.training.run_messages import Values
from rayface.version import VERSION

CHANCE = 0.5
"""Accuracy of guesses: half of the pairs are of one person."""


def write_report(
    run: RunDirectory,
    *,
    metrics: Mapping[str, Series],
    table: Sequence[tuple[str, str]],
    evaluation: Values | None = None,
    refresh: int = 0,
) -> None:
    """Write the self-contained report of a run, and its figures as PNG.

    Args:
        run: the run directory; its config is shown if there is one.
        metrics: result of `read_metrics`.
        table: rows (name, value) of the table at the top.
        evaluation: content of evaluation.json.
        refresh: seconds after which an open page loads itself again; 0: never, the run has ended, and its figures are
            also written as PNG.
    """
    content = evaluation or {}
    figures: Values = next(iter(content.get("protocols", {}).values()), {})
    curves: Values = next(iter(content.get("curves", {}).values()), {})
    plots = draw_curves(
        metrics,
        evaluation_plots(content, "at the last validation" if refresh else "at the last step"),
        pair_set=curves.get("name", ""),
        chance=CHANCE if "accuracy_mean" in figures else None,
    )
    if not refresh:
        write_pngs(run.plots, plots)
    page = load_template("report.html").render(
        title=run.title,
        table=table,
        plots=[{"caption": plot.caption, "wide": plot.wide, "svg": as_svg(plot)} for plot in plots],
        palette=PALETTE,
        refresh=refresh,
        config=run.config_text(),
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    run.write_report(page)
