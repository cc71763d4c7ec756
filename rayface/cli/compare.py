"""Verb of comparisons: compare."""

from typing import TYPE_CHECKING, Annotated

import typer

from rayface.cli.common import Debug, Json, Seed, Verbose, app, tell

if TYPE_CHECKING:
    from rayface.evaluation.compare import Comparison

_SHOWN_FLIPS = 10


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run directories, or outputs of evaluate.")],
    out: Annotated[str | None, typer.Option("--out", help="Folder for comparison.csv and flips.csv, or a URI.")] = None,
    replicates: Annotated[
        int, typer.Option(min=1, help="Number of replicates of the bootstrap over identities.")
    ] = 1000,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare models measured on the same pairs: differences from the first with p values, and pairs that flipped."""
    from rayface.display import json_line
    from rayface.evaluation.compare import compare as compare_runs

    found = compare_runs(runs, replicates=replicates, seed=seed)
    if out is not None:
        found.write(out)
    if json:
        json_line(found.as_dict())
    else:
        _show(found)


def _show(found: "Comparison") -> None:
    from rayface.display import columns

    rows = found.as_dict()["comparison"]
    for name, size in found.sizes.items():
        about = f"{size.pairs:,} pairs of {size.identities:,} identities, 95% intervals"
        typer.echo(f"{name}: {about}")
        for run in found.runs:
            own = [row for row in rows if (row["protocol"], row["run"]) == (name, run)]
            if run == found.runs[0]:
                columns(run, [_cells(row) for row in own])
                continue
            columns(f"{run}, compared with {found.runs[0]}", [_cells(row) | _compared(row) for row in own])
            for row in (row for row in own if row["mcnemar_p"] is not None):
                pairs = f"{row['gained']:,} pairs gained, {row['lost']:,} lost"
                typer.echo(f"{_label(str(row['figure']))}: {pairs}, McNemar p {_number(row['mcnemar_p'])}")
    for run in found.runs[1:]:
        flips = found.flips[found.flips["run"] == run]
        tell(f"{run}: {len(flips)} pairs flipped{', the first:' if len(flips) > _SHOWN_FLIPS else ''}")
        for flip in flips.head(_SHOWN_FLIPS).to_dict("records"):
            kind = "genuine" if flip["is_same"] else "impostor"
            change = f"{flip['first_score']:.3f} to {flip['score']:.3f}"
            tell(f"  {flip['flip']} {kind} {flip['path_a']} {flip['path_b']}: {change}")


def _cells(row: dict[str, float]) -> dict[str, str]:
    return {"figure": _label(str(row["figure"])), "value": _rate(row["value"], row["low"], row["high"])}


def _compared(row: dict[str, float]) -> dict[str, str]:
    return {
        "difference": _rate(row["difference"], row["difference_low"], row["difference_high"], "+"),
        "p": _number(row["p_value"]),
    }


def _label(figure: str) -> str:
    return "accuracy" if figure == "accuracy_mean" else figure.replace("tar_at_far", "TAR at FAR")


def _rate(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    form = f"{sign}z.2f"  # z: a difference of -1e-17 is +0.00%
    interval = "" if low is None or high is None else f" [{100 * low:{form}}, {100 * high:{form}}]"
    return f"{100 * value:{form}}%{interval}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
