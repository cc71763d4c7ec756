"""The command line of the kit: `python -m rayface.bench.gpu`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rayface.bench.gpu.case import Kit, Part, Value
from rayface.bench.gpu.parts import PARTS

_PARTS_TEXT = "; ".join(f"{part.key} {part.title}" for part in PARTS)
app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(epilog=f"Parts, most valuable first: {_PARTS_TEXT}.")
def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json and tables.txt; made if missing.")],
    minutes: Annotated[float, typer.Option(help="Time in all; shared out over the parts.", min=0.1)] = 8.0,
    parts: Annotated[str, typer.Option(help="Letters of the parts to run, e.g. a,b; all by default.")] = "",
    cases: Annotated[str, typer.Option(help="Run only cases whose name contains this text.")] = "",
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: cuda if PyTorch sees a GPU.")] = "auto",
    mini: Annotated[
        bool | None, typer.Option("--mini/--full", help="Small sizes; the default on a CPU.", show_default=False)
    ] = None,
) -> None:
    """Show in a few minutes what one GPU does with rayface: correctness, speed and memory.

    Needs PyTorch, numba, NumPy, pyarrow, rich and typer: no Ray, no MLflow, no network. Every case is isolated: an
    error, a crash or a lack of memory in one is recorded, and the rest go on. results.json is written after every
    case and a table is printed after every part, so a run that is cut off leaves what it has found.

    Exit code: 0 all passed (or cut), 1 a case failed, 2 bad arguments.
    """
    from rayface.bench.gpu.machine import describe
    from rayface.bench.gpu.report import Report
    from rayface.bench.gpu.runner import run_parts

    try:
        chosen, found = _chosen(parts), _device(device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    kit = Kit(device=found, mini=found == "cpu" if mini is None else mini, contains=cases)
    arguments: dict[str, Value] = {
        "device": found,
        "mini": kit.mini,
        "minutes": minutes,
        "parts": parts,
        "cases": cases,
    }
    report = Report(out, arguments, describe())
    run_parts(chosen, kit, 60 * minutes, report)
    report.summary()
    raise typer.Exit(0 if report.all_passed else 1)


def _chosen(keys: str) -> list[Part]:
    known = {part.key: part for part in PARTS}
    asked = [key.strip() for key in keys.split(",") if key.strip()] or list(known)
    for key in asked:
        if key not in known:
            raise ValueError(f"--parts: {key!r}: must be some of {', '.join(known)}")
    return [part for part in PARTS if part.key in asked]


def _device(name: str) -> str:
    import torch  # seconds that --help does not need

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: {name!r}: must be auto, cpu or cuda")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda: PyTorch sees no GPU here: use --device cpu, or a PyTorch built for CUDA")
    return name


if __name__ == "__main__":
    app()
